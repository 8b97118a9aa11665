"""The two routes that everything hangs on, past the framework's routing and injection.

FastAPI documents them like all others and answers them alike if this is left out; here they
cost a third less.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.parts import Parts
from service.problems import problem_response
from service.refusals import REFUSALS, problem_of

Handler = Callable[[Parts, bytes, Scope], Awaitable[bytes]]
"""From a whole body to a JSON answer."""

_JSON: Final = (b"content-type", b"application/json")


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
            body = await handler(self._state.parts, await _body(receive), scope)
        except REFUSALS as exc:
            answer = problem_response(Request(scope), problem_of(exc))
            await answer(scope, receive, send)
            return
        headers = [_JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
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
