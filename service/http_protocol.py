"""HTTP as uvicorn speaks it, an answer's head and body sent together, refusals sent at once.

uvicorn writes the head and then the body, which are two calls of the system and wake the caller
twice; the first time for nothing. And it makes a task and a dozen calls for every request, which
under overload is most of what a refused one costs.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)


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
    """uvicorn's protocol on such a transport.

    An app may have a method ``refusal(scope)``: the whole answer to a request that it refuses by
    its head, or nothing.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(cast("asyncio.Transport", JoinedTransport(transport)))

    def on_message_complete(self) -> None:
        """End a request; where it was refused before it ended, its connection idles from here."""
        super().on_message_complete()
        # Without a cycle the connection becomes another protocol's.
        if self.cycle is None or not self.cycle.response_complete or self.transport.is_closing():
            return
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Refuse a request at once, or have it served."""
        # One that waited behind others, or awaits leave to go on, takes the longer way.
        at_once = cycle is self.cycle and cycle.keep_alive and not cycle.waiting_for_100_continue
        refuse = getattr(app, "refusal", None) if at_once else None
        refusal = refuse(cycle.scope) if refuse is not None else None
        if refusal is None:
            super()._start_asgi_task(cycle, app)
            return
        status, headers, body = refusal
        cycle.response_started = cycle.response_complete = True
        lines = [b"%s: %s\r\n" % header for header in (*cycle.default_headers, *headers)]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        cycle.on_response()
