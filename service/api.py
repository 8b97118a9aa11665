"""The routes: from JSON to the parts of the service and back."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers
from starlette.types import Scope

from model_store import ModelStoreError
from service import bodies, metrics
from service.admission import OverloadedError
from service.answers import PROBLEMS, Written, check_limit, json_answer
from service.event_body import EVENTS_SCHEMA, parse_events
from service.live_model import NoModelError
from service.parts import Parts, PartsOf
from service.problems import ProblemError
from service.refusals import TOO_MANY
from service.score_answer import write_compact, write_json
from service.score_body import (
    SCORE_SCHEMA,
    ScoreRequest,
    is_compact,
    parse_compact,
    parse_score,
)
from service.scoring import Candidates, FeatureWidthError, HistoryBehindError, Ranking, Wishes
from service.settings import Settings
from service.state import StateDownError

ASKED: Final = "ranking_asked"
"""In the scope of a request whose body was read before: what it says."""
BEGUN_AT: Final = "ranking_begun_at"
"""In the scope of a request whose ranking was begun before: when, by ``time.perf_counter()``."""

router = APIRouter(responses=PROBLEMS)


@router.post(
    "/events",
    response_model=bodies.EventsOut,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": EVENTS_SCHEMA},
)
async def post_events(request: Request, parts: PartsOf) -> Response:
    """Append clicks. Once this answers, every score reflects them; repeating it is safe."""
    written = await events(parts, await request.body(), request.scope)
    return written.response()


async def events(parts: Parts, raw: bytes, scope: Scope) -> Written:
    """Answer ``POST /events``."""
    content_type = Headers(scope=scope).get("content-type", "application/json")
    given = parse_events(content_type, raw, limit=parts.settings.max_events)
    verdicts, users = await parts.events.record(given)
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
    return Written(orjson.dumps({"results": results, "users": standing}))


@router.post(
    "/score",
    response_model=bodies.ScoreOut,
    response_model_exclude_none=True,
    openapi_extra={"requestBody": SCORE_SCHEMA},
)
async def post_score(request: Request, parts: PartsOf) -> Response:
    """Rank candidates by the probability that this user clicks them."""
    written = await score(parts, await request.body(), request.scope)
    return written.response()


async def score(parts: Parts, raw: bytes, scope: Scope) -> Written:
    """Answer ``POST /score``, in the form that it was asked in."""
    now = time.perf_counter()
    # Where it was begun before, and is made from scratch, the caller has waited since then.
    start: float = scope.get(BEGUN_AT, now)
    if parts.admission.full:
        raise OverloadedError(TOO_MANY)
    compact = is_compact(scope)
    asked: ScoreRequest | None = scope.get(ASKED)
    if asked is None:
        asked = parse_compact(raw) if compact else parse_score(raw)
    check_limit("candidates", len(asked.video_ids), parts.settings.max_candidates)
    ranking = await _ranking(parts, asked, waited=now - start)
    request_id: str = scope["state"]["request_id"]
    took_ms = (time.perf_counter() - start) * 1e3
    return write_ranking(ranking, asked, compact=compact, request_id=request_id, took_ms=took_ms)


def write_ranking(
    ranking: Ranking, asked: ScoreRequest, *, compact: bool, request_id: str, took_ms: float
) -> Written:
    """Write an answer to ``POST /score``, as MessagePack or JSON."""
    if compact:
        return write_compact(ranking, request_id=request_id, took_ms=took_ms)
    return write_json(ranking, asked.video_ids, request_id=request_id, took_ms=took_ms)


def wishes_of(asked: ScoreRequest, settings: Settings, *, waited: float = 0.0) -> Wishes:
    """Return what a request asks of its ranking; ``waited`` seconds of its time have passed."""
    # No longer than anyone may wait: a whole number of JSON may be beyond every float.
    limit_ms = settings.score_timeout_ms
    seconds = None if asked.timeout_ms is None else min(asked.timeout_ms, limit_ms) / 1e3
    return Wishes(asked.top_k, asked.min_history_version, seconds, asked.strict, waited)


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

    A process that has seen Redis stays ready without it: it still answers, degraded. One that
    was told to end is not ready any more.
    """
    if parts.drain.begun:
        raise ProblemError(503, "this process is going away: ask another")
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
    metrics.KEPT.flush()
    text = await asyncio.to_thread(metrics.exposition)
    return Response(text, media_type=metrics.CONTENT_TYPE)


async def _ranking(parts: Parts, asked: ScoreRequest, *, waited: float) -> Ranking:
    wishes = wishes_of(asked, parts.settings, waited=waited)
    try:
        return await parts.scoring.rank(
            asked.user_id, Candidates(asked.video_ids, asked.inline), wishes
        )
    except HistoryBehindError as exc:
        members = {"history_version": exc.version}
        raise ProblemError(409, str(exc), members=members) from None
    except FeatureWidthError as exc:
        fault = {"pointer": f"/candidates/{exc.index}/features", "detail": str(exc)}
        raise ProblemError(422, f"candidate {exc.index}: {exc}", errors=[fault]) from None
