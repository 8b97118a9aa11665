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
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_HEAD: Final = re.compile(
    rb"POST (/[A-Za-z0-9/_-]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\t\x20-\x7e]*\r\n)+)"
)
_LINE: Final = b"\r\n"
_END: Final = _LINE + _LINE
_LONGEST_HEAD: Final = 4_096
_HEADS: Final = 256
_LENGTH: Final = b"content-length"
_MOST_DIGITS: Final = 15
# Of the framing only the plainest is judged here; the rest is the parser's.
_FRAMING: Final = frozenset(
    (_LENGTH, b"connection", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
# What many clients send, and what goes without saying.
_STAYS_OPEN: Final = (b"connection", b"keep-alive")

Headers = tuple[tuple[bytes, bytes], ...]
Answer = tuple[int, bytes, bytes]
"""Status, the lines of the head between the status' and the empty one, body."""


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

    def send(self, answer: Answer, *, close: bool = False) -> None:
        """Send the whole answer; where the caller went away there is nobody to send it to."""
        if close:
            self._cycle.keep_alive = False
        self._protocol.answer(self._cycle, answer)

    def serve(self) -> None:
        """Have the app serve the request after all."""
        self._protocol.serve(self._cycle)


class JoinedHttp(HttpToolsProtocol):
    """uvicorn's protocol on such a transport.

    An app may have four methods: ``is_refusing()``, whether it refuses any POSTs now, and then
    ``refusal(path, headers)``, the whole answer to one that it refuses by its head, or nothing;
    ``begins_whole(scope)``, whether it wants a request, by its head, once it is whole, and
    ``begin(scope, body, reply)``, with that request: whether it will use the reply, or is to serve it.
    """

    transport: JoinedTransport  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A message that has begun is gone on with, though it look like another one.
        self._between_messages = True
        self._is_refusing: Callable[[], bool] = getattr(self.app, "is_refusing", _never)
        self._refused_at = 0.0
        self._defaults: object = None
        self._default_lines = b""
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
        if not (self._between_messages and self._is_refusing() and self._refused(data)):
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
        if self._answering() or self.flow.write_paused or self.transport.is_closing():
            return False
        request = plain_request(data)
        refusal = self.app.refusal(*request) if request is not None else None
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
        # The server's own, where it refuses, is another app.
        asks = app is self.app and self._is_refusing()
        refusal = self._refusal(cycle.scope) if asks else None
        if refusal is not None:
            self.answer(cycle, refusal)
        elif cycle.more_body and getattr(app, "begins_whole", _never)(cycle.scope):
            self._growing = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _refusal(self, scope: Any) -> Answer | None:
        if scope["method"] != "POST":
            return None
        refusal: Answer | None = self.app.refusal(scope["path"], scope["headers"])
        return refusal

    def serve(self, cycle: RequestResponseCycle) -> None:
        """Have the app serve a request."""
        super()._start_asgi_task(cycle, self.app)

    def answer(self, cycle: RequestResponseCycle, answer: Answer) -> None:
        """Send the whole answer to a request that no task serves."""
        if cycle.disconnected or self.transport.is_closing():
            return
        status, lines, body = answer
        if not cycle.keep_alive:
            lines += b"connection: close\r\n"
        cycle.response_started = cycle.response_complete = True
        self._write_whole(status, lines, body)
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _write_whole(self, status: int, lines: bytes, body: bytes) -> None:
        defaults = self.server_state.default_headers
        # The server makes new ones every second.
        if defaults is not self._defaults:
            self._defaults, self._default_lines = defaults, lines_of(defaults)
        whole = (STATUS_LINE[status], self._default_lines, lines, b"\r\n", body)
        self.transport.write_whole(b"".join(whole))


def _never(*_: object) -> bool:
    return False


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write headers as lines of a head."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def plain_request(data: bytes) -> tuple[str, Headers] | None:
    """Read the head of a POST that ends where the data ends, in the plainest form only.

    Args:
        data: from the request's first byte on.

    Returns:
        Its path and its headers, names in lower case; nothing where anything is left for a parser
        to judge.
    """
    end = data.find(_END, 0, _LONGEST_HEAD)
    head = _plain_head(data[: end + len(_LINE)]) if end > 0 else None
    if head is None or head.length != len(data) - end - len(_END):
        return None
    return head.path, head.headers


class _Head(NamedTuple):
    path: str
    headers: Headers
    length: int


# A caller's heads are often the same, but for the ids that some send.
@lru_cache(_HEADS)
def _plain_head(head: bytes) -> _Head | None:
    found = _HEAD.fullmatch(head)
    if found is None:
        return None
    headers: list[tuple[bytes, bytes]] = []
    length = None
    for line in found[2].removesuffix(_LINE).split(_LINE):
        name, _, value = line.partition(b":")
        # The parser, too, leaves what stands behind a value.
        name, value = name.lower(), value.lstrip(b" \t")
        headers.append((name, value))
        if name not in _FRAMING:
            continue
        if name == _LENGTH and length is None:
            length = value.rstrip(b" \t")
        elif (name, value.rstrip(b" \t").lower()) != _STAYS_OPEN:
            return None
    if length is None or not length.isdigit() or len(length) > _MOST_DIGITS:
        return None
    return _Head(found[1].decode(), tuple(headers), int(length))
