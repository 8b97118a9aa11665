"""A ranking as callers read it: JSON with a row for each candidate, or compact MessagePack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack
import msgspec

from service.answers import Written
from service.score_body import MSGPACK
from service.scoring import Ranking
from service.steps import STEPS


class _Unranked(msgspec.Struct, gc=False):
    video_id: str
    index: int
    rank: None
    score: None
    reason: str


_encode: Final = msgspec.json.Encoder().encode


def write_json(
    ranking: Ranking, video_ids: Sequence[str], *, request_id: str, took_ms: float
) -> Written:
    """Write a row for each candidate, best first, those without a score at the end."""
    common = _encode(_common(ranking, request_id, took_ms))
    rows = STEPS.write(video_ids, ranking.places, ranking.scores)
    if ranking.unranked:
        unranked = [_Unranked(video_ids[p], p, None, None, why) for p, why in ranking.unranked]
        rows = b",".join(part for part in (rows, _encode(unranked)[1:-1]) if part)
    return Written(b"".join((common[:-1], b',"results":[', rows, b"]}")))


def write_compact(ranking: Ranking, *, request_id: str, took_ms: float) -> Written:
    """Write columns: ``index`` (uint32) and ``score`` (float64), little-endian, best first."""
    answer = {
        **_common(ranking, request_id, took_ms),
        "index": ranking.places.astype("<u4").tobytes(),
        "score": ranking.scores.astype("<f8").tobytes(),
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
