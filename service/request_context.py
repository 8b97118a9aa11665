"""What belongs to one request from its first byte to its last: its ids, and how long what took.

The ids come from the caller where they are well-formed: ``X-Request-ID`` (1 to 128 visible ASCII
characters), and ``traceparent`` of W3C Trace Context (https://www.w3.org/TR/trace-context/),
whose trace is gone on with.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
# A later version may have more behind the flags, and would begin it with a dash.
_TRACEPARENT: Final = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_NO_TRACE: Final = b"0" * 32
_NO_PARENT: Final = b"0" * 16
_SAMPLED: Final = 1

_NAMES: Final = (b"x-request-id", b"traceparent", b"server-timing")
_LINES: Final = b"".join(name + b": %s\r\n" for name in _NAMES)

Given = TypeVarTuple("Given")
Result = TypeVar("Result")


class Parent(NamedTuple):
    """Where a request comes from in a trace.

    Attributes:
        trace_id: 32 hexadecimal digits, not all zero.
        span_id: of the caller, 16 hexadecimal digits, not all zero.
        sampled: whether the caller records the trace.
        state: ``tracestate`` as it came, of vendors.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str


Lap = tuple[str, float, float]
"""A piece of the work for a request: its name, its start and its end, by ``time.perf_counter()``.

A bare tuple, since half a dozen are made for every ranking.
"""


class RequestContext:
    """One request.

    Args:
        request_id: what the caller calls it; without one it gets one.
        parent: where it comes from, where the caller said so in a valid form.

    Attributes:
        request_id: what the caller and the log call it.
        start: when it came, by ``time.perf_counter()``.
        began_ns: the same, by the clock on the wall.
        laps: the pieces of its work so far.
    """

    __slots__ = (
        "began_ns",
        "laps",
        "parent",
        "request_id",
        "sampled",
        "span",
        "span_id",
        "start",
        "trace_id",
    )

    def __init__(self, request_id: str | None, parent: Parent | None) -> None:
        self.start = time.perf_counter()
        self.began_ns = time.time_ns()
        self.parent = parent
        # One draw for all: all zero, which no id may be, comes up once in 10**19 requests.
        digits = f"{random.getrandbits(320):080x}"
        self.request_id = request_id or digits[:32]
        self.trace_id = parent.trace_id if parent else digits[32:64]
        self.span_id = digits[64:]
        self.sampled = parent.sampled if parent else False
        self.laps: list[Lap] = []
        self.span: object = None
        """Of a tracer, where there is one."""

    @property
    def traceparent(self) -> bytes:
        """This request's place in its trace, for the answer."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


CURRENT: Final[ContextVar[RequestContext | None]] = ContextVar("request", default=None)
"""The request that this task works for."""


async def timed(name: str, call: Callable[[*Given], Awaitable[Result]], *given: *Given) -> Result:
    """Call something and note how long it took as a piece of the present request."""
    start = time.perf_counter()
    try:
        return await call(*given)
    finally:
        note_lap(name, start, time.perf_counter())


def note_lap(name: str, start: float, end: float) -> None:
    """Note a piece that was measured elsewhere; without a request nothing is noted."""
    request = CURRENT.get()
    if request is not None:
        request.laps.append((name, start, end))


def note_laps(asked: float, laps: Sequence[Lap]) -> None:
    """Note pieces that were done elsewhere, and since when they had waited to be begun."""
    request = CURRENT.get()
    if request is not None and laps:
        request.laps.append(("queue", asked, laps[0][1]))
        request.laps.extend(laps)


def request_id_from(given: bytes | None) -> str | None:
    """Return the caller's request id; ``None`` where it is missing or no good."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return None


def parent_from(traceparent: bytes | None, tracestate: bytes = b"") -> Parent | None:
    """Read ``traceparent``; ``None`` where it is missing or not valid, as the standard has it."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None or found["version"] == b"ff":
        return None
    if found["version"] == b"00" and found["more"] is not None:
        return None
    if found["trace"] == _NO_TRACE or found["parent"] == _NO_PARENT:
        return None
    sampled = bool(int(found["flags"], 16) & _SAMPLED)
    trace, parent = found["trace"].decode(), found["parent"].decode()
    return Parent(trace, parent, sampled, tracestate.decode("latin-1"))


class Told(NamedTuple):
    """What the head of a request says of it.

    Attributes:
        request_id: what its caller calls it, if that is well-formed.
        parent: where it comes from, where the caller said so in a valid form.
        length: of its body, in bytes; 0 where it does not say.
    """

    request_id: str | None
    parent: Parent | None
    length: int

    def context(self) -> RequestContext:
        """Make the request's context; it starts now."""
        return RequestContext(self.request_id, self.parent)


def told_by(headers: Iterable[tuple[bytes, bytes]]) -> Told:
    """Read the head of a request.

    Args:
        headers: of the request, names in lower case.
    """
    request_id = traceparent = None
    tracestate, length, parents = b"", 0, 0
    for name, value in headers:
        if name == b"content-length":
            length = length_in(value)
        elif name == b"x-request-id":
            request_id = value
        elif name == b"traceparent":
            traceparent = value
            parents += 1
        elif name == b"tracestate":
            tracestate += b"," + value if tracestate else value
    # Two of them are none, says the standard.
    parent = parent_from(traceparent, tracestate) if parents == 1 else None
    return Told(request_id_from(request_id), parent, length)


def length_in(value: bytes) -> int:
    """Read the value of ``Content-Length``, of which it is known that it is a number.

    Not how many zeros stand before it, of which there may be more than ``int`` takes, nor whether blanks
    stand behind it: the parser leaves them there.
    """
    return int(value.strip().lstrip(b"0") or b"0")


def answer_headers(request: RequestContext) -> list[tuple[bytes, bytes]]:
    """Return what the head of every answer says of its request."""
    return list(zip(_NAMES, _values(request), strict=True))


def answer_lines(request: RequestContext) -> bytes:
    """Write :func:`answer_headers` as lines."""
    return _LINES % _values(request)


def _values(request: RequestContext) -> tuple[bytes, bytes, bytes]:
    return request.request_id.encode(), request.traceparent, server_timing(request)


def server_timing(request: RequestContext) -> bytes:
    """Write ``Server-Timing``: milliseconds by name, those of one name added up, and in all."""
    if not request.laps:
        return b"total;dur=%.3f" % (1e3 * (time.perf_counter() - request.start))
    spent: dict[str, float] = {}
    for name, start, end in request.laps:
        spent[name] = spent.get(name, 0.0) + end - start
    spent["total"] = time.perf_counter() - request.start
    return ", ".join([f"{name};dur={1e3 * took:.3f}" for name, took in spent.items()]).encode()
