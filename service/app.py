"""Puts the parts together: the one place where the service is wired."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from model_store import ModelStore, ModelStoreError
from service import metrics
from service.api import Parts, router
from service.edge import Edge
from service.events import Events
from service.live_model import LiveModel, NoModelError
from service.logs import configure_logs
from service.problems import ProblemError, problem_response
from service.profiles import Profiles
from service.scoring import Scoring
from service.settings import Settings
from service.state import State, StateDownError

_CANCEL_SECONDS = 0.2

_log = logging.getLogger(__name__)


class SettingsError(Exception):
    """The settings do not suffice for an app."""


def create_app(settings: Settings) -> FastAPI:
    """Make the app.

    Raises:
        SettingsError: no ``redis_url``; the command line gives the embedded one's.
    """
    if settings.redis_url is None:
        raise SettingsError("redis_url is not set: start with python -m service, or set it")
    url = settings.redis_url

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _assembled(settings, url) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(
        title="Click-through prediction for micro-videos", lifespan=lifespan, redoc_url=None
    )
    app.include_router(router)
    app.add_middleware(Edge, max_body_bytes=settings.max_body_bytes)
    for error in (
        ProblemError,
        StateDownError,
        NoModelError,
        HTTPException,
        RequestValidationError,
    ):
        app.add_exception_handler(error, _answer_problem)
    return app


def create_app_from_env() -> FastAPI:
    """Make the app from the environment: what every worker process calls."""
    settings = Settings()  # type: ignore[call-arg]  # from the environment
    configure_logs(settings.log_level)
    return create_app(settings)


@asynccontextmanager
async def _assembled(settings: Settings, url: str) -> AsyncIterator[Parts]:
    async with AsyncExitStack() as stack:
        stack.callback(metrics.forget_process)
        executor = ThreadPoolExecutor(settings.threads, "model")
        stack.callback(executor.shutdown, cancel_futures=True)
        state = State(url, timeout_seconds=settings.redis_timeout_seconds)
        stack.push_async_callback(state.close)
        live = LiveModel(
            ModelStore(settings.model_store), executor, poll_seconds=settings.model_poll_seconds
        )
        await _open_model(live, wait=settings.wait_for_model)
        profiles = Profiles(
            state,
            live,
            executor=executor,
            # One call's candidates must fit beside another's.
            cached_rows=max(settings.cached_rows, 2 * settings.max_candidates),
            queue_size=settings.profile_queue,
        )
        stack.push_async_callback(profiles.close)
        for work in (live.follow(), profiles.run()):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        yield Parts(
            settings=settings,
            state=state,
            live=live,
            scoring=Scoring(state, live, profiles=profiles, executor=executor),
            events=Events(
                state, profiles, future_tolerance_seconds=settings.future_tolerance_seconds
            ),
        )


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
    answer = problem_response(request, _problem(error))
    if isinstance(error, HTTPException):
        answer.headers.update(error.headers or {})
    return answer


def _problem(error: Exception) -> ProblemError:
    match error:
        case ProblemError():
            return error
        case RequestValidationError():
            return _validation_problem(error)
        case HTTPException():
            return ProblemError(error.status_code, str(error.detail))
        case StateDownError():
            _log.error("%s", error)
            return ProblemError(503, "the store is down, nothing was lost: try again")
        case _:
            return ProblemError(503, str(error))


def _validation_problem(error: RequestValidationError) -> ProblemError:
    found = error.errors()
    if any(fault["type"] == "json_invalid" for fault in found):
        return ProblemError(400, "the body is not JSON")
    faults = [
        {
            "pointer": "/" + "/".join(map(str, f["loc"][1:])),
            "detail": f["msg"].removeprefix("Value error, "),
        }
        for f in found[:20]
    ]
    return ProblemError(422, f"{len(found)} things are wrong with the request", errors=faults)
