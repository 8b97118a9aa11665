"""BentoML: a service class with one worker, started with ``bentoml serve``."""

from __future__ import annotations

from typing import Any

import bentoml

from benchmarks.serving.peer_servers.scorer import Scorer, ids_of


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Ranker:
    """Ranks."""

    def __init__(self) -> None:
        self.scorer = Scorer()

    @bentoml.api(route="/score")
    def score(self, user_id: str, candidates: list[dict[str, str]]) -> dict[str, Any]:
        """Rank."""
        return self.scorer.score(user_id, ids_of(candidates))
