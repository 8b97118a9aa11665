"""Ray Serve: a deployment with one replica behind its HTTP proxy."""

from __future__ import annotations

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peer_servers.scorer import Scorer, ids_of


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Ranker:
    """Ranks."""

    def __init__(self) -> None:
        self.scorer = Scorer()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Rank."""
        body = await request.json()
        return self.scorer.score(body["user_id"], ids_of(body["candidates"]))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Ranker.bind(), route_prefix="/score")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()
