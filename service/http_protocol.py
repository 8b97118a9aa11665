"""HTTP as uvicorn speaks it, an answer's head and body sent together.

uvicorn writes the head and then the body, which are two calls of the system and wake the caller
twice; the first time for nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoinedTransport:
    """A transport that keeps what is written until more comes, or until the loop's next turn.

    Args:
        transport: what it writes to; everything else is its own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send data together with what was kept, or keep it."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self._held = data
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Send what is kept; where the other end is gone there is nobody to send it to."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Send what is kept, then close."""
        self.flush()
        self._transport.close()


class JoinedHttp(HttpToolsProtocol):
    """uvicorn's protocol on such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(cast("asyncio.Transport", JoinedTransport(transport)))
