"""The routes: from JSON to the parts of the service and back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from model_store import FloatArray, ModelStoreError
from service import bodies, metrics
from service.events import Events
from service.live_model import LiveModel, NoModelError
from service.problems import ProblemError
from service.scoring import Candidate, FeatureWidthError, Ranking, Scoring
from service.settings import Settings
from service.state import FEATURE_LIMIT, State, Video

_FLOAT32_LIMIT: Final = float(np.finfo(np.float32).max)
_PROBLEM: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": bodies.ProblemOut} for status in (400, 413, 422, 503)
}

router = APIRouter(responses=_PROBLEM)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes speak to; put together by the app."""

    settings: Settings
    state: State
    live: LiveModel
    scoring: Scoring
    events: Events


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(_parts)]


@router.put("/videos", response_model=bodies.VideosOut)
async def put_videos(body: bodies.VideosIn, parts: PartsOf) -> Response:
    """Register videos, or change them. Features are kept as float16."""
    _limit("videos", len(body.videos), parts.settings.max_videos)
    width = parts.live.current().manifest.layout.feature_dim
    good: list[tuple[str, Video]] = []
    faults: list[dict[str, object]] = []
    for index, raw in enumerate(body.videos):
        try:
            good.append(_video(raw, width))
        except ValidationError as exc:
            faults.append({"index": index, "reason": bodies.reasons(exc)})
        except ValueError as exc:
            faults.append({"index": index, "reason": str(exc)})
    written = await parts.state.register(good)
    unchanged = len(written) - sum(written)
    return _json({"accepted": len(good), "unchanged": unchanged, "faults": faults})


@router.get("/videos/{video_id:path}", response_model=bodies.VideoIn)
async def get_video(video_id: str, parts: PartsOf) -> Response:
    """Read a registered video."""
    [video] = (await parts.state.videos([video_id])).videos
    if video is None:
        raise ProblemError(404, f"video {video_id!r} is not registered: PUT /videos does it")
    features = video.features.tolist()
    return _json({"video_id": video_id, "category": video.category, "features": features})


@router.post("/events", response_model=bodies.EventsOut, response_model_exclude_none=True)
async def post_events(body: bodies.EventsIn, parts: PartsOf) -> Response:
    """Append clicks. Once this answers, every score reflects them; repeating it is safe."""
    _limit("events", len(body.events), parts.settings.max_events)
    verdicts, users = await parts.events.record(body.events)
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
    return _json({"results": results, "users": standing})


@router.post("/score", response_model=bodies.ScoreOut, response_model_exclude_none=True)
async def post_score(body: bodies.ScoreIn, request: Request, parts: PartsOf) -> Response:
    """Rank candidates by the probability that this user clicks them."""
    start = time.perf_counter()
    _limit("candidates", len(body.candidates), parts.settings.max_candidates)
    candidates = _candidates(body.candidates)
    try:
        ranking = await parts.scoring.rank(body.user_id, candidates, top_k=body.top_k)
    except FeatureWidthError as exc:
        fault = {"pointer": f"/candidates/{exc.index}/features", "detail": str(exc)}
        raise ProblemError(422, f"candidate {exc.index}: {exc}", errors=[fault]) from None
    answer = _score_answer(ranking)
    answer["request_id"] = request.state.request_id
    answer["took_ms"] = round((time.perf_counter() - start) * 1e3, 3)
    return _json(answer)


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
    return _json({"versions": versions, "current": current, "serving": serving})


@router.get("/health/live")
async def get_live() -> dict[str, str]:
    """Say that this process runs; asks nobody else."""
    return {"status": "live"}


@router.get("/health/ready")
async def get_ready(parts: PartsOf) -> dict[str, str]:
    """Say that a model is open and Redis answers."""
    version = parts.live.current().manifest.version
    await parts.state.ping()
    return {"status": "ready", "version": version}


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Show the metrics of all workers to Prometheus."""
    text = await asyncio.to_thread(metrics.exposition)
    return Response(text, media_type=metrics.CONTENT_TYPE)


def _json(body: object) -> Response:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _limit(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ProblemError(413, f"{count} {what} in one call, {limit} are allowed: split the call")


def _video(raw: object, width: int) -> tuple[str, Video]:
    given = bodies.VideoIn.model_validate(raw)
    if len(given.features) != width:
        raise ValueError(f"features: {len(given.features)} given, the model takes {width}")
    features = np.array(given.features, np.float64)
    if features.size and np.abs(features).max() > FEATURE_LIMIT:
        raise ValueError(f"features: magnitudes above {FEATURE_LIMIT:.0f} cannot be stored")
    return given.video_id, Video(given.category, features.astype(np.float32))


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
    return {
        "model": {"name": ranking.model_name, "version": ranking.model_version},
        "history": {"length": ranking.history.length, "version": ranking.history.version},
        "results": results,
    }
