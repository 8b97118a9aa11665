"""The routes: from JSON to the parts of the service and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from model_store import FloatArray, ModelStoreError
from service import bodies, metrics
from service.answers import PROBLEMS, check_limit, json_answer
from service.event_body import EVENTS_SCHEMA, events_body
from service.live_model import NoModelError
from service.parts import PartsOf
from service.problems import ProblemError
from service.scoring import Candidate, FeatureWidthError, HistoryBehindError, Ranking, Wishes
from service.state import StateDownError, Video

_FLOAT32_LIMIT: Final = float(np.finfo(np.float32).max)

router = APIRouter(responses=PROBLEMS)


@router.post(
    "/events",
    response_model=bodies.EventsOut,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": EVENTS_SCHEMA},
)
async def post_events(
    events: Annotated[list[object], Depends(events_body)], parts: PartsOf
) -> Response:
    """Append clicks. Once this answers, every score reflects them; repeating it is safe."""
    check_limit("events", len(events), parts.settings.max_events)
    verdicts, users = await parts.events.record(events)
    if verdicts and all(verdict.status == "invalid" for verdict in verdicts):
        faults = [
            {"pointer": f"/events/{index}", "detail": str(verdict.reason)}
            for index, verdict in enumerate(verdicts[:20])
        ]
        raise ProblemError(422, f"none of {len(verdicts)} events is valid", errors=faults)
    results = []
    for verdict in verdicts:
        result: dict[str, object] = {"status": verdict.status}
        if verdict.reason is not None:
            result["reason"] = verdict.reason
        if not verdict.video_known:
            result["video_known"] = False
        results.append(result)
    standing = {
        user: {"history_version": position.version, "history_length": position.length}
        for user, position in users.items()
    }
    return json_answer({"results": results, "users": standing})


@router.post("/score", response_model=bodies.ScoreOut, response_model_exclude_none=True)
async def post_score(body: bodies.ScoreIn, request: Request, parts: PartsOf) -> Response:
    """Rank candidates by the probability that this user clicks them."""
    start = time.perf_counter()
    check_limit("candidates", len(body.candidates), parts.settings.max_candidates)
    candidates = _candidates(body.candidates)
    try:
        wishes = Wishes(body.top_k, body.min_history_version, body.strict)
        ranking = await parts.scoring.rank(body.user_id, candidates, wishes)
    except HistoryBehindError as exc:
        members = {"history_version": exc.version}
        raise ProblemError(409, str(exc), members=members) from None
    except FeatureWidthError as exc:
        fault = {"pointer": f"/candidates/{exc.index}/features", "detail": str(exc)}
        raise ProblemError(422, f"candidate {exc.index}: {exc}", errors=[fault]) from None
    answer = _score_answer(ranking)
    answer["request_id"] = request.state.request_id
    answer["took_ms"] = round((time.perf_counter() - start) * 1e3, 3)
    return json_answer(answer)


@router.get("/models", response_model=bodies.ModelsOut)
async def get_models(parts: PartsOf) -> Response:
    """List the published versions."""
    store = parts.live.store
    versions = await asyncio.to_thread(store.versions)
    try:
        current: str | None = await asyncio.to_thread(store.current)
    except ModelStoreError:
        current = None
    try:
        serving: str | None = parts.live.current().manifest.version
    except NoModelError:
        serving = None
    return json_answer({"versions": versions, "current": current, "serving": serving})


@router.get("/health/live")
async def get_live() -> dict[str, str]:
    """Say that this process runs; asks nobody else."""
    return {"status": "live"}


@router.get("/health/ready")
async def get_ready(parts: PartsOf) -> dict[str, str]:
    """Say that a model is open, and that Redis has been reached since the start.

    A process that has seen Redis stays ready without it: it still answers, degraded.
    """
    version = parts.live.current().manifest.version
    try:
        await parts.state.ping()
    except StateDownError:
        if not parts.state.reached:
            raise
        return {"status": "ready", "version": version, "redis": "down"}
    return {"status": "ready", "version": version, "redis": "up"}


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Show the metrics of all workers to Prometheus."""
    text = await asyncio.to_thread(metrics.exposition)
    return Response(text, media_type=metrics.CONTENT_TYPE)


def _candidates(given: Sequence[bodies.CandidateIn]) -> list[Candidate]:
    candidates = []
    for index, candidate in enumerate(given):
        if candidate.features is None or candidate.category is None:
            candidates.append(Candidate(candidate.video_id))
            continue
        video = Video(candidate.category, _float32(candidate.features, index))
        candidates.append(Candidate(candidate.video_id, video))
    return candidates


def _float32(values: Sequence[float], index: int) -> FloatArray:
    features = np.array(values, np.float64)
    if features.size and np.abs(features).max() > _FLOAT32_LIMIT:
        fault = {"pointer": f"/candidates/{index}/features", "detail": "a value is beyond float32"}
        raise ProblemError(422, f"candidate {index}: a feature is beyond float32", errors=[fault])
    return features.astype(np.float32)


def _score_answer(ranking: Ranking) -> dict[str, object]:
    results: list[dict[str, object]] = []
    for row in ranking.rows:
        result: dict[str, object] = {
            "video_id": row.video_id,
            "index": row.index,
            "rank": row.rank,
            "score": row.score,
        }
        if row.reason is not None:
            result["reason"] = row.reason
        results.append(result)
    answer: dict[str, object] = {
        "model": {"name": ranking.model_name, "version": ranking.model_version},
        "history": {"length": ranking.history.length, "version": ranking.history.version},
        "results": results,
    }
    if ranking.degraded is not None:
        answer["degraded"] = {"level": ranking.degraded.level, "reason": ranking.degraded.reason}
    return answer
