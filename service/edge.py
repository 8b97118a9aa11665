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
from service.answers import Written
from service.draining import Drain
from service.http_protocol import Reply
from service.problems import ProblemError, problem_response
from service.request_context import (
    CURRENT,
    RequestContext,
    answer_headers,
    answer_lines,
    length_in,
    told_by,
)
from service.shedding import Shedding

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
        shedding: refuses requests of which no more than their head is known.
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
        shedding: Shedding | None = None,
        quick: Quick | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._access_log = access_log
        self._drain = drain
        self._tracer = tracer
        self._quick = quick
        if shedding is not None:
            # What the server's protocol asks for.
            self.is_refusing, self.refusal = shedding.is_on, shedding.refusal

    def begins_whole(self, scope: Scope) -> bool:
        """Whether to call :meth:`begin` with a request once it is whole, instead of serving it now."""
        quick = self._quick
        if quick is None or self._drain.begun or not quick.takes(scope):
            return False
        for name, value in scope["headers"]:
            if name == b"content-length":
                whole = length_in(value) <= min(_SHORT, self._max_body_bytes)
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

    def _begun(self, scope: Scope) -> tuple[RequestContext, int]:
        """Return a request's context, new or as it was begun before, and the length of its body."""
        state = scope.setdefault("state", {})
        told = told_by(scope["headers"])
        if _REQUEST not in state:
            request = state[_REQUEST] = told.context()
            state["request_id"] = request.request_id
            if self._tracer is not None:
                self._tracer.begin(request)
        return state[_REQUEST], told.length

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
        body, kind = written
        what = b"content-type: %s\r\ncontent-length: %d\r\n" % (kind.encode(), len(body))
        # First of all: whatever may fail after it, the caller has the answer.
        reply.send((status, what + answer_lines(request), body), close=self._drain.begun)
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

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer, length: int) -> None:
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
            if length > self._max_body_bytes:
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
        metrics.note_request(route, status, end - request.start)
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
            headers = [*message.get("headers", ()), *answer_headers(request)]
            if self._drain.begun:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)
