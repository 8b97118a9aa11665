"""Around every request: its id, the limit of its body, its count, and the last resort."""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.problems import ProblemError, problem_response

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

_log = logging.getLogger(__name__)


class BodyTooLargeError(Exception):
    """A body without a declared length turned out longer than the limit."""


class Edge:
    """ASGI middleware: X-Request-ID, body limit, request metrics, and 500 for what is left.

    Args:
        app: what is inside.
        max_body_bytes: longest request body.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(  # noqa: C901  one request from its first byte to its count
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        too_large = False
        received = 0

        async def limited() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                too_large = True
                raise BodyTooLargeError
            return message

        async def watched(message: Message) -> None:
            # Whatever the inside makes of the broken-off body, the answer is 413.
            if not too_large:
                await answer.send(message)

        try:
            if int(headers.get("content-length", "0")) > self._max_body_bytes:
                too_large = True
            else:
                await self._app(scope, limited, watched)
        except BodyTooLargeError:
            pass
        except Exception:  # noqa: BLE001  the last resort
            _log.exception("request %s failed", request_id)
            if answer.status is None:
                problem = ProblemError(500, "an error inside the service; its log has the id")
                await problem_response(Request(scope), problem)(scope, receive, answer.send)
        if too_large and answer.status is None:
            limit = self._max_body_bytes
            problem = ProblemError(413, f"the body is longer than {limit} bytes: split the call")
            await problem_response(Request(scope), problem)(scope, receive, answer.send)
        route = scope.get("route_path") or getattr(scope.get("route"), "path", "unmatched")
        metrics.requests(route, answer.status).inc()
        metrics.request_seconds(route).observe(time.perf_counter() - start)


class _Answer:
    """Passes an answer on, with the request's id, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
