"""Around every request: its ids, the limit of its body, its count, its log line, the last resort."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.access_log import AccessLog
from service.admission import OverloadedError
from service.answers import Written
from service.draining import Drain
from service.http_protocol import Reply
from service.problems import ProblemError, RepeatedProblem, problem_response
from service.refusals import TOO_MANY, problem_of
from service.request_context import (
    CURRENT,
    RequestContext,
    parent_from,
    request_id_from,
    server_timing,
)

Headers = list[tuple[bytes, bytes]]
_UNMATCHED: Final = "unmatched"
_REQUEST: Final = "request_context"
_SHORT: Final = 1 << 16
"""Bytes of a body that is waited for before anything is done: uvicorn stops reading beyond."""

_log = logging.getLogger(__name__)


class Tracer(Protocol):
    """Makes spans of requests."""

    def begin(self, request: RequestContext) -> None:
        """Begin a request's span."""

    def end(
        self, request: RequestContext, method: str, route: str, status: int | None, end: float
    ) -> None:
        """End it, by ``time.perf_counter()``."""

    async def close(self) -> None:
        """Send what is left."""


class Quick(Protocol):
    """Answers requests without a task."""

    def takes(self, scope: Scope) -> bool:
        """Whether a request, of which the head is known, may be one."""

    def begin(
        self, scope: Scope, raw: bytes, done: Callable[[tuple[int, Written] | None], None]
    ) -> bool:
        """Begin to answer one that is whole; nothing to ``done`` has the app serve it after all."""


class BrokenOffError(Exception):
    """A body turned out longer than the limit, or its caller went away: nothing of it is taken."""


class Edge:
    """ASGI middleware: ids, body limit, metrics, log line, trace, and 500 for what is left.

    Args:
        app: what is inside.
        max_body_bytes: longest request body.
        access_log: writes the lines of requests.
        drain: says when connections should end.
        tracer: makes spans, where traces are wanted.
        refuses: whether a request, of which no more than its head is known, is one too many.
        quick: answers some requests without a task.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        access_log: AccessLog,
        drain: Drain,
        tracer: Tracer | None = None,
        refuses: Callable[[Scope], bool] = lambda _: False,
        quick: Quick | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._access_log = access_log
        self._drain = drain
        self._tracer = tracer
        self.refuses = refuses
        """Whether a request, of which no more than its method and path is looked at, is too many."""
        self._quick = quick
        self._too_many = RepeatedProblem(problem_of(OverloadedError(TOO_MANY)))

    def refusal(self, scope: Scope, *, judged: bool = False) -> tuple[int, Headers, bytes] | None:
        """Return the whole answer to a request that is one too many: status, headers, body.

        Nothing for any other, and where what is usual does not suffice: ``__call__`` serves it.

        Args:
            scope: with the request's method, path and headers.
            judged: whether :attr:`refuses` was asked just now, and said yes.
        """
        if not (judged or self.refuses(scope)) or self._drain.begun or self._tracer is not None:
            return None
        request, length = _opened(scope)
        if int(length) > self._max_body_bytes:
            return None
        too_many = self._too_many
        body = too_many.body(request.request_id)
        size = b"%d" % len(body)
        headers = [*too_many.headers, (b"content-length", size), *_headers(request)]
        scope["route_path"] = scope["path"]
        self._close(scope, request, too_many.status)
        return too_many.status, headers, body

    def begins_whole(self, scope: Scope) -> bool:
        """Whether to call :meth:`begin` with a request once it is whole, instead of serving it now."""
        quick = self._quick
        if quick is None or self._drain.begun or not quick.takes(scope):
            return False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value.lstrip(b"0")[:16] or b"0")
                whole = length <= min(_SHORT, self._max_body_bytes)
                if whole:
                    # From here on it is timed.
                    self._begun(scope)
                return whole
        # Of unknown length: its body is taken as it comes.
        return False

    def begin(self, scope: Scope, body: bytes, reply: Reply) -> bool:
        """Begin to answer a request that is whole.

        Returns:
            Whether ``reply`` will be used; if not, the request is to be served.
        """
        if self._quick is None:
            return False
        # What wants it whole has begun it.
        request: RequestContext = scope["state"][_REQUEST]
        done = partial(self._answered, scope, request, reply)
        token = CURRENT.set(request)
        try:
            return self._quick.begin(scope, body, done)
        except Exception:  # noqa: BLE001  it is served, and whatever is wrong shows again
            _log.exception("request %s could not be begun at once", request.request_id)
            return False
        finally:
            CURRENT.reset(token)

    def _begun(self, scope: Scope) -> tuple[RequestContext, bytes]:
        """Return a request's context, new or as it was begun before, and the length of its body."""
        state = scope.setdefault("state", {})
        request, length = _opened(scope, state.get(_REQUEST))
        if _REQUEST not in state:
            state[_REQUEST], state["request_id"] = request, request.request_id
            if self._tracer is not None:
                self._tracer.begin(request)
        return request, length

    def _answered(
        self,
        scope: Scope,
        request: RequestContext,
        reply: Reply,
        answer: tuple[int, Written] | None,
    ) -> None:
        if answer is None:
            reply.serve()
            return
        status, written = answer
        headers = [
            (b"content-type", written.media_type.encode()),
            (b"content-length", b"%d" % len(written.body)),
            *_headers(request),
        ]
        # First of all: whatever may fail after it, the caller has the answer.
        reply.send(status, headers, written.body, close=self._drain.begun)
        scope["route_path"] = scope["path"]
        self._close(scope, request, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, length = self._begun(scope)
        token = CURRENT.set(request)
        answer = _Answer(send, request, self._drain)
        try:
            await self._serve(scope, receive, answer, length)
        finally:
            self._close(scope, request, answer.status)
            CURRENT.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer, length: bytes) -> None:
        too_large = gone = False
        received = 0

        async def limited() -> Message:
            nonlocal received, too_large, gone
            message = await receive()
            received += len(message.get("body", b""))
            gone = message["type"] == "http.disconnect"
            too_large = received > self._max_body_bytes
            if gone or too_large:
                raise BrokenOffError
            return message

        async def watched(message: Message) -> None:
            # Whatever the inside makes of the broken-off body, the answer is 413, or none.
            if not (too_large or gone):
                await answer.send(message)

        try:
            if int(length) > self._max_body_bytes:
                too_large = True
            else:
                await self._app(scope, limited, watched)
        except BrokenOffError:
            pass
        except Exception:  # noqa: BLE001  the last resort
            _log.exception("request %s failed", answer.request.request_id)
            if answer.status is None:
                problem = ProblemError(500, "an error inside the service; its log has the id")
                await problem_response(Request(scope), problem)(scope, receive, answer.send)
        if too_large and answer.status is None:
            limit = self._max_body_bytes
            problem = ProblemError(413, f"the body is longer than {limit} bytes: split the call")
            await problem_response(Request(scope), problem)(scope, receive, answer.send)

    def _close(self, scope: Scope, request: RequestContext, status: int | None) -> None:
        end = time.perf_counter()
        # The route's template: a path may hold a user's id, and there is no end of them.
        route = str(scope.get("route_path") or getattr(scope.get("route"), "path", _UNMATCHED))
        metrics.KEPT.count(metrics.requests(route, status))
        metrics.KEPT.observe(metrics.request_seconds(route), end - request.start)
        self._access_log.note(scope["method"], route, status, 1e3 * (end - request.start))
        if self._tracer is not None:
            self._tracer.end(request, scope["method"], route, status, end)


class _Answer:
    """Passes an answer on, with what belongs into its head, and remembers its status."""

    def __init__(self, send: Send, request: RequestContext, drain: Drain) -> None:
        self._send = send
        self._drain = drain
        self.request = request
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request = self.request
            headers = [*message.get("headers", ()), *_headers(request)]
            if self._drain.begun:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)


def _headers(request: RequestContext) -> Headers:
    return [
        (b"x-request-id", request.request_id.encode()),
        (b"traceparent", request.traceparent),
        (b"server-timing", server_timing(request)),
    ]


def _opened(scope: Scope, request: RequestContext | None = None) -> tuple[RequestContext, bytes]:
    """Make the context of a request without one, and find how long its body says it is."""
    request_id = traceparent = None
    tracestate, length, parents = b"", b"0", 0
    for name, value in scope["headers"]:
        if name == b"content-length":
            # The parser has judged its value, not how many zeros stand before it.
            length = value.lstrip(b"0") or b"0"
        elif name == b"x-request-id":
            request_id = value
        elif name == b"traceparent":
            traceparent = value
            parents += 1
        elif name == b"tracestate":
            tracestate += b"," + value if tracestate else value
    if request is not None:
        return request, length
    # Two of them are none, says the standard.
    parent = parent_from(traceparent, tracestate) if parents == 1 else None
    return RequestContext(request_id_from(request_id), parent), length
