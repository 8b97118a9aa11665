"""The two routes that everything hangs on, past the framework's routing and injection.

FastAPI documents them like all others and answers them alike if this is left out; here they
cost a third less.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import Written
from service.parts import Parts
from service.problems import MEDIA_TYPE, WrittenProblem, write_problem
from service.refusals import REFUSALS, problem_of

Handler = Callable[[Parts, bytes, Scope], Awaitable[Written]]
"""From a whole body to an answer."""

_NOTHING: Final[Mapping[str, str]] = {}


class FastPath:
    """ASGI: answers some routes itself and leaves the others to the app.

    Args:
        app: has the parts in its state.
        handlers: by path, of POST requests.
    """

    def __init__(self, app: FastAPI, handlers: Mapping[str, Handler]) -> None:
        self._app: ASGIApp = app
        self._state = app.state
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        handler = None
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._handlers.get(scope["path"])
        if handler is None:
            await self._app(scope, receive, send)
            return
        scope["route_path"] = scope["path"]
        try:
            written = await handler(self._state.parts, await _body(receive), scope)
        except REFUSALS as exc:
            status, refusal = _refused(exc, scope["state"]["request_id"])
            await _answer(send, status, refusal.body, MEDIA_TYPE, refusal.headers)
        else:
            await _answer(send, 200, written.body, written.media_type)


# In a frame of its own: an error that one of the frames in its traceback holds is a cycle, and what
# the others hold, bodies among it, stays until the garbage collector comes.
def _refused(error: Exception, request_id: str) -> tuple[int, WrittenProblem]:
    problem = problem_of(error)
    return problem.status, write_problem(problem, request_id)


async def _answer(
    send: Send, status: int, body: bytes, media_type: str, more: Mapping[str, str] = _NOTHING
) -> None:
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", b"%d" % len(body)),
        *((name.encode(), value.encode()) for name, value in more.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts = [body]
    while message.get("more_body", False):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)
