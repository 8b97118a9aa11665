"""The floor: what a request costs when nothing is looked up and nothing is computed.

``ours`` runs behind the same server, reads the same body with the same checks and answers bytes of the
same length as the service does. ``short`` does so without a task, as the service answers what it has
in memory. ``fastapi`` is the same as a plain FastAPI endpoint.
"""

from __future__ import annotations

import argparse
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Request, Response

from service.access_log import AccessLog
from service.answers import Written
from service.draining import Drain
from service.edge import Edge
from service.fast_path import FastPath
from service.score_body import parse_score

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Scope


class Short:
    """Answers at once.

    Args:
        answers: by number of candidates.
    """

    def __init__(self, answers: dict[int, bytes]) -> None:
        self._answers = answers

    def takes(self, scope: Scope) -> bool:
        """Whether it is a ranking."""
        return bool(scope["path"] == "/score")

    def begin(self, _: Scope, raw: bytes, done: Callable[[tuple[int, Written]], None]) -> bool:
        """Read and answer."""
        done((200, Written(self._answers[len(parse_score(raw).video_ids)])))
        return True


def make(kind: str, answers: dict[int, bytes]) -> ASGIApp:
    """Make the app; answers by number of candidates."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.parts = None
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    if kind == "fastapi":

        @app.post("/score")
        async def score(request: Request) -> Response:
            asked = parse_score(await request.body())
            return Response(answers[len(asked.video_ids)], media_type="application/json")

        return app

    async def handle(_: object, raw: bytes, __: Scope) -> Written:
        return Written(answers[len(parse_score(raw).video_ids)])

    return Edge(
        FastPath(app, {"/score": handle}),  # type: ignore[dict-item]
        max_body_bytes=1 << 26,
        access_log=AccessLog("notable", 250.0),
        drain=Drain(0.0),
        quick=Short(answers) if kind == "short" else None,
    )


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("ours", "short", "fastapi"), required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    answers = {
        int(count): text.encode() for count, text in json.loads(options.answers.read_text()).items()
    }
    uvicorn.run(
        make(options.kind, answers),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="service.connections:LingeringProtocol",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
