"""What the garbage collector walks while the service answers, and what is not left to it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from pydantic import SecretStr

from model_store import ModelStore
from service.app import create_app
from service.fast_path import FastPath
from service.settings import Settings


def test_a_collection_does_not_walk_what_the_start_made(store: ModelStore, redis_url: str) -> None:
    """From when it serves until it ends: hundreds of thousands of objects, all requests waiting."""
    settings = Settings(model_store=store.root, redis_url=SecretStr(redis_url))
    app = create_app(settings)
    left_alone = []
    usual = gc.get_threshold()

    async def run() -> None:
        started, ending = asyncio.Event(), asyncio.Event()
        told = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, str]:
            kind = next(told)
            if kind == "lifespan.shutdown":
                await ending.wait()
            return {"type": kind}

        async def send(message: Any) -> None:
            assert message["type"].endswith("complete"), message
            started.set()

        serving = asyncio.create_task(app({"type": "lifespan", "state": {}}, receive, send))
        await started.wait()
        left_alone.extend((gc.get_freeze_count(), gc.get_threshold()[0]))
        ending.set()
        await serving

    asyncio.run(run())

    assert left_alone[0] > 50_000
    # Nor is a collection begun for what a few dozen requests at once have in use.
    assert left_alone[1] >= 10_000
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == usual


ODD = [
    ("/score", b"{"),
    ("/score", b'{"user_id": "u"}'),
    ("/score", b'{"user_id": "u", "candidates": [{"video_id": "v"}], "min_history_version": 9}'),
    ("/events", b"["),
    ("/events", b'{"events": [{"user_id": "u", "video_id": "v", "timestamp": 9e18}]}'),
]


@pytest.mark.parametrize(("path", "body"), ODD)
async def test_what_a_refused_request_brought_is_gone_with_it(
    store: ModelStore, redis_url: str, path: str, body: bytes
) -> None:
    """An error that is held by a frame of its own traceback stays, with bodies, for the collector."""
    settings = Settings(model_store=store.root, redis_url=SecretStr(redis_url))
    app = create_app(settings)
    inside: Any = app
    while not isinstance(inside, FastPath):
        inside = inside._app
    statuses = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        await app(scope, receive, send)

    async with inside._app.router.lifespan_context(inside._app):
        await ask()
        gc.collect()
        gc.disable()
        try:
            await ask()
            left = gc.collect()
        finally:
            gc.enable()

    assert statuses[0] == statuses[2] >= 400
    assert left == 0
