"""HTTP as uvicorn speaks it, an answer's head and body sent together, refusals sent at once.

uvicorn writes the head and then the body, which are two calls of the system and wake the caller
twice; the first time for nothing. And it makes a task and a dozen calls for every request, which
under overload is most of what a refused one costs: one that came whole and in the plainest form
is refused before it is parsed, any other by its head. For the same reason an app may answer a
request without a task.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_START: Final = re.compile(rb"(POST) (/[A-Za-z0-9/_-]*) HTTP/1\.1\r\n")
_HEADERS: Final = re.compile(rb"(?:[A-Za-z0-9-]+:[\t\x20-\x7e]*\r\n)+\r\n")
# Of the framing only the plainest is judged here; the rest is the parser's.
_FRAMING: Final = frozenset(
    (b"connection", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# What many clients send, and what goes without saying.
_STAYS_OPEN: Final = (b"connection", b"keep-alive")
_LENGTH: Final = b"content-length"
_DIGITS: Final = re.compile(rb"[0-9]{1,15}")

Headers = list[tuple[bytes, bytes]]


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

    def is_closing(self) -> bool:
        """Whether it is closing, or closed."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send data together with what was kept, or keep it."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self._held = data
            self._call_soon(self.flush)

    def write_whole(self, data: bytes) -> None:
        """Send data to which no more will come, behind what was kept."""
        held, self._held = self._held, b""
        self._transport.write(held + data)

    def flush(self) -> None:
        """Send what is kept; where the other end is gone there is nobody to send it to."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Send what is kept, then close."""
        self.flush()
        self._transport.close()


class Reply:
    """Where the answer goes to a request that is answered without a task; to be used once."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: JoinedHttp, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def send(self, status: int, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """Send the whole answer; where the caller went away there is nobody to send it to."""
        if close:
            self._cycle.keep_alive = False
        self._protocol.answer(self._cycle, status, headers, body)

    def serve(self) -> None:
        """Have the app serve the request after all."""
        self._protocol.serve(self._cycle)


class JoinedHttp(HttpToolsProtocol):
    """uvicorn's protocol on such a transport.

    An app may have four methods: ``refuses(scope)``, whether it refuses a POST by its path, and
    ``refusal(scope, judged=...)``, the whole answer to a request that it refuses by its head, or
    nothing, having said so of its path or not;
    ``begins_whole(scope)``, whether it wants a request, by its head, once it is whole, and
    ``begin(scope, body, reply)``, with that request: whether it will use the reply, or is to serve it.
    """

    transport: JoinedTransport  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A message that has begun is gone on with, though it look like another one.
        self._between_messages = True
        self._refused_at = 0.0
        # One that is begun once it is whole, until it is.
        self._growing: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(cast("asyncio.Transport", JoinedTransport(transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection; the app hears of a request that never became whole."""
        super().connection_lost(exc)
        self._serve_growing()

    def shutdown(self) -> None:
        """Begin to shut down; what has no task yet gets one, whose end is waited for."""
        super().shutdown()
        self._serve_growing()

    def data_received(self, data: bytes) -> None:
        """Refuse a request that is whole, or parse what came."""
        if not (self._between_messages and self._refused(data)):
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._between_messages = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """End a request; where it was refused before it ended, its connection idles from here."""
        self._between_messages = True
        super().on_message_complete()
        whole, self._growing = self._growing, None
        if whole is not None:
            if not self.app.begin(whole.scope, bytes(whole.body), Reply(self, whole)):
                self.serve(whole)
            return
        # Without a cycle the connection becomes another protocol's.
        if self.cycle is not None and self.cycle.response_complete:
            self._idle()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that has idled; not one whose last request was refused since."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                left, self.timeout_keep_alive_handler
            )

    def _idle(self) -> None:
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refused(self, data: bytes) -> bool:
        start = _START.match(data)
        if start is None or self.flow.write_paused or self.transport.is_closing():
            return False
        refuses = getattr(self.app, "refuses", None)
        scope = {"method": start[1].decode(), "path": start[2].decode()}
        if self._answering() or refuses is None or not refuses(scope):
            return False
        headers = plain_headers(data, start.end())
        if headers is None:
            return False
        refusal = self.app.refusal({**scope, "headers": headers}, judged=True)
        if refusal is None:
            return False
        self.server_state.total_requests += 1
        self._write_whole(*refusal)
        # Timers are dear: one that runs finds out for itself that it runs too early.
        self._refused_at = self.loop.time()
        self._idle()
        return True

    def _serve_growing(self) -> None:
        growing, self._growing = self._growing, None
        if growing is not None:
            self.serve(growing)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Refuse a request at once, or wait until it is whole, or have it served."""
        # One that waited behind others, or awaits leave to go on, takes the longer way; so does one
        # of a caller that does not read its answers.
        usual = cycle is self.cycle and cycle.keep_alive and not cycle.waiting_for_100_continue
        if not usual or self.flow.write_paused:
            super()._start_asgi_task(cycle, app)
            return
        refuse = getattr(app, "refusal", None)
        refusal = refuse(cycle.scope) if refuse is not None else None
        if refusal is not None:
            self.answer(cycle, *refusal)
        elif cycle.more_body and getattr(app, "begins_whole", _never)(cycle.scope):
            self._growing = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def serve(self, cycle: RequestResponseCycle) -> None:
        """Have the app serve a request."""
        super()._start_asgi_task(cycle, self.app)

    def answer(
        self, cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes
    ) -> None:
        """Send the whole answer to a request that no task serves."""
        if cycle.disconnected or self.transport.is_closing():
            return
        if not cycle.keep_alive:
            headers = [*headers, (b"connection", b"close")]
        cycle.response_started = cycle.response_complete = True
        self._write_whole(status, headers, body)
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _write_whole(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> None:
        given = (*self.server_state.default_headers, *headers)
        lines = [b"%s: %s\r\n" % header for header in given]
        self.transport.write_whole(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))


def _never(_: object) -> bool:
    return False


def plain_headers(data: bytes, start: int) -> Headers | None:
    """Read the headers of a request that ends where the data ends, in the plainest form only.

    Args:
        data: from the request's first byte on.
        start: where its headers begin.

    Returns:
        Names in lower case, and values; nothing where anything is left for a parser to judge.
    """
    found = _HEADERS.match(data, start)
    if found is None:
        return None
    headers, lengths = [], []
    for line in data[start : found.end() - 4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if name in _FRAMING and (name, value.lower()) != _STAYS_OPEN:
            return None
        if name == _LENGTH:
            lengths.append(value)
        headers.append((name, value))
    sure = len(lengths) == 1 and _DIGITS.fullmatch(lengths[0])
    return headers if sure and int(lengths[0]) == len(data) - found.end() else None
