"""A ranking as callers read it: JSON with a row for each candidate, or compact MessagePack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import orjson

from service.answers import Written
from service.score_body import MSGPACK
from service.scoring import Ranking


def write_json(
    ranking: Ranking, video_ids: Sequence[str], *, request_id: str, took_ms: float
) -> Written:
    """Write a row for each candidate, best first, those without a score at the end."""
    results: list[dict[str, object]] = [
        {"video_id": video_ids[place], "index": place, "rank": rank, "score": score}
        for rank, (place, score) in enumerate(
            zip(ranking.places, ranking.scores, strict=True), start=1
        )
    ]
    results += [
        {"video_id": video_ids[p], "index": p, "rank": None, "score": None, "reason": reason}
        for p, reason in ranking.unranked
    ]
    return Written(orjson.dumps({**_common(ranking, request_id, took_ms), "results": results}))


def write_compact(ranking: Ranking, *, request_id: str, took_ms: float) -> Written:
    """Write columns: ``index`` (uint32) and ``score`` (float64), little-endian, best first."""
    answer = {
        **_common(ranking, request_id, took_ms),
        "index": np.array(ranking.places, "<u4").tobytes(),
        "score": np.array(ranking.scores, "<f8").tobytes(),
        "unranked": [[place, reason] for place, reason in ranking.unranked],
    }
    packed: bytes = msgpack.packb(answer)
    return Written(packed, MSGPACK)


def _common(ranking: Ranking, request_id: str, took_ms: float) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "model": {"name": ranking.model_name, "version": ranking.model_version},
        "history": {"length": ranking.history.length, "version": ranking.history.version},
        "request_id": request_id,
        "took_ms": round(took_ms, 3),
    }
    if ranking.degraded is not None:
        answer["degraded"] = {"level": ranking.degraded.level, "reason": ranking.degraded.reason}
    return answer
