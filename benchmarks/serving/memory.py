"""Memory of a worker with a million rows in its cache, and seconds from start to ready."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.serving import load
from benchmarks.serving.scenario import (
    VIDEOS,
    make_network,
    publish_network,
    redis,
    service,
    video_id,
)
from service.state import State, Video

ROWS = 1_000_000
_PER_CALL = 5_000
Runs = dict[str, list[float]]


def measure_memory(*, rounds: int) -> tuple[dict[str, float], Runs]:
    """Fill the cache of one worker; then start it again, to see how long that takes."""
    runs: Runs = {"ready_s": [], "rss_empty_mb": [], "rss_million_rows_mb": []}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        store = publish_network(directory / "store", make_network(pruned=True))
        with redis(directory / "redis") as url:
            asyncio.run(_load(url))
            log = directory / "service.log"
            with service(store, url, log, CTR_ROW_CACHE_MB="2048") as running:
                runs["rss_empty_mb"].append(running.rss_mb())
                _ask_for_all(running.port)
                runs["rss_million_rows_mb"].append(running.rss_mb())
            # The rows used last are encoded again before the service is ready.
            for _ in range(rounds):
                with service(store, url, log) as running:
                    runs["ready_s"].append(running.ready_seconds)
    return {name: statistics.median(values) for name, values in runs.items()}, runs


async def _load(url: str) -> None:
    rng = np.random.default_rng(7)
    state = State(url, timeout_seconds=30.0)
    for start in range(0, ROWS, VIDEOS):
        features = rng.standard_normal((VIDEOS, 512), np.float32).astype(np.float16)
        videos = [(video_id(start + i), Video(i % 512, row)) for i, row in enumerate(features)]
        await state.register(videos)
    await state.close()


def _ask_for_all(port: int) -> None:
    for start in range(0, ROWS, _PER_CALL):
        candidates = [{"video_id": video_id(start + i)} for i in range(_PER_CALL)]
        body = {"user_id": "u", "candidates": candidates, "top_k": 1}
        status, answer = load.one(port, load.post("/score", json.dumps(body).encode()))
        if status != 200:  # noqa: PLR2004
            raise SystemExit(f"/score answered {status}: {answer[:300].decode()}")
