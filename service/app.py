"""Puts the parts together: the one place where the service is wired."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from model_store import Device, ModelStore, ModelStoreError
from service import api, metrics, user_api, video_api
from service.access_log import AccessLog
from service.admission import Admission
from service.background import Background
from service.changes import Changes
from service.draining import Drain
from service.edge import Edge, Tracer
from service.events import Events
from service.fast_path import FastPath
from service.flags import from_environment
from service.garbage import start_left_alone
from service.head_queue import Batching, HeadQueue
from service.live_model import LiveModel
from service.logs import configure_logs
from service.luck import Luck
from service.masking import secrets_of
from service.parts import Parts
from service.problems import problem_response
from service.profiles import Profiles
from service.quick_path import QuickPath
from service.quick_scoring import QuickScoring
from service.refusals import REFUSALS, problem_of
from service.scoring import Means, Scoring
from service.settings import Settings
from service.shedding import Shedding
from service.state import State, StateDownError
from service.warmth import Warmth

_CANCEL_SECONDS = 0.2
_AT_ONCE = 24
"""Rankings begun at a time, beside one for each thread."""
_UNLIMITED = 1 << 30
_GPU_ROWS = 16_384
"""Candidates in one run on a CUDA device."""

_log = logging.getLogger(__name__)


class SettingsError(Exception):
    """The settings do not suffice for an app."""


def create_app(settings: Settings, *, tracer: Tracer | None = None) -> ASGIApp:
    """Make the app.

    Args:
        settings: what an operator set.
        tracer: makes spans of requests.

    Raises:
        SettingsError: no ``redis_url``; the command line gives the embedded one's.
    """
    url = settings.redis_address
    if url is None:
        raise SettingsError("redis_url is not set: start with python -m service, or set it")

    drain = Drain(settings.drain_notice_seconds)
    admission = Admission(settings.max_candidates_in_flight)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _assembled(settings, url, drain, admission) as parts:
            app.state.parts = parts
            drain.watch()
            yield
        if tracer is not None:
            await tracer.close()

    app = FastAPI(
        title="Click-through prediction for micro-videos", lifespan=lifespan, redoc_url=None
    )
    for routes in (api, video_api, user_api):
        app.include_router(routes.router)
    for error in REFUSALS:
        app.add_exception_handler(error, _answer_problem)
    fast = FastPath(app, {"/score": api.score, "/events": api.events})

    access_log = AccessLog(settings.access_log, settings.slow_ms)
    shedding = Shedding(
        admission,
        {"/score"},
        max_body_bytes=settings.max_body_bytes,
        access_log=access_log,
        drain=drain,
    )
    return Edge(
        fast,
        max_body_bytes=settings.max_body_bytes,
        access_log=access_log,
        drain=drain,
        tracer=tracer,
        # Where traces are wanted a refused request has its span, too.
        shedding=shedding if tracer is None else None,
        quick=QuickPath(app),
    )


def create_app_from_env() -> ASGIApp:
    """Make the app from the environment: what every worker process calls."""
    settings = from_environment()
    configure_logs(settings.log_level, settings.log_format, secrets_of(settings.redis_address))
    return create_app(settings, tracer=make_tracer() if settings.traces else None)


def make_tracer() -> Tracer | None:
    """Make a tracer as the ``OTEL_`` variables want it; ``None`` where they want none.

    Raises:
        SettingsError: a variable has no good value.
    """
    # Not above: without the extra there is nothing to import.
    from service.tracing import tracer_from_environment  # noqa: PLC0415

    try:
        return tracer_from_environment()
    except ValueError as exc:
        raise SettingsError(f"traces cannot be set up: {exc}") from exc


@asynccontextmanager
async def _assembled(
    settings: Settings, url: str, drain: Drain, admission: Admission
) -> AsyncIterator[Parts]:
    async with AsyncExitStack() as stack:
        stack.callback(metrics.forget_process)
        metrics.WORKERS.set(1)
        executor = ThreadPoolExecutor(settings.threads, "model")
        stack.callback(executor.shutdown, cancel_futures=True)
        state = State(
            url, timeout_seconds=settings.redis_timeout_seconds, lifetimes=settings.lifetimes
        )
        stack.push_async_callback(state.close)
        live = LiveModel(
            ModelStore(settings.model_store),
            executor,
            poll_seconds=settings.model_poll_seconds,
            device=settings.find_device(),
        )
        parts = _wired(settings, state, live, drain, admission, executor=executor)
        warmth = Warmth(
            state,
            parts.profiles,
            executor=executor,
            videos=settings.warm_videos,
            seconds=settings.warm_seconds,
        )
        live.before_swap(warmth.warm)
        try:
            await parts.changes.poll()
        except StateDownError as exc:
            _log.warning("not ready, waiting for Redis: %s", exc)
        await _open_model(live, wait=settings.wait_for_model)
        stack.push_async_callback(parts.profiles.close)
        following = live.follow(), parts.changes.run(), parts.background.run()
        for work in (*following, warmth.remember(live)):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        stack.enter_context(start_left_alone())
        yield parts


def _wired(
    settings: Settings,
    state: State,
    live: LiveModel,
    drain: Drain,
    admission: Admission,
    *,
    executor: Executor,
) -> Parts:
    changes = Changes(state, poll_seconds=settings.change_poll_seconds)
    profiles = Profiles(
        state,
        changes,
        executor=executor,
        row_cache_bytes=settings.row_cache_mb * 2**20,
        last_profiles=settings.last_profiles,
        inline=settings.inline_microseconds > 0,
    )
    head = HeadQueue(executor, _batching(settings, live.device))
    # A device wants all there are, to merge them.
    at_once = settings.threads + _AT_ONCE if live.device.kind == "cpu" else _UNLIMITED
    means = Means(
        live=live,
        profiles=profiles,
        head=head,
        admission=admission,
        timeout_seconds=settings.score_timeout_ms / 1e3,
        turns=asyncio.Semaphore(at_once),
        luck=Luck(),
    )
    background = Background(
        profiles,
        live,
        busy=lambda: admission.busy,
        queue_size=settings.profile_queue,
        patience_seconds=settings.profile_patience_seconds,
    )
    tolerance = settings.future_tolerance_seconds
    return Parts(
        settings=settings,
        drain=drain,
        state=state,
        live=live,
        changes=changes,
        profiles=profiles,
        background=background,
        admission=admission,
        scoring=Scoring(means),
        quick_scoring=QuickScoring(means),
        events=Events(state, profiles.last, background, future_tolerance_seconds=tolerance),
    )


def _batching(settings: Settings, device: Device) -> Batching:
    if device.kind == "cpu":
        return Batching(settings.threads, inline_seconds=settings.inline_microseconds / 1e6)
    window = settings.gpu_window_microseconds / 1e6
    return Batching(threads=2, window_seconds=window, merge=True, max_rows=_GPU_ROWS)


async def _open_model(live: LiveModel, *, wait: bool) -> None:
    try:
        await live.open()
    except ModelStoreError as exc:
        if not wait:
            raise
        _log.warning("not ready, waiting for a model version: %s", exc)


async def _cancelled(task: asyncio.Task[None]) -> None:
    # Once is not enough: a client library may turn the cancellation into an error of its own,
    # which the task then survives.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_SECONDS)


async def _answer_problem(request: Request, error: Exception) -> Response:
    answer = problem_response(request, problem_of(error))
    if isinstance(error, HTTPException):
        answer.headers.update(error.headers or {})
    return answer
