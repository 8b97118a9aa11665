"""What the dashboards show, for Prometheus; one process or several."""

from __future__ import annotations

import math
import os
import random
import time
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from model_store import Manifest
from service.histogram import BulkHistogram
from service.kept import Kept
from service.metric_files import cleared
from service.request_context import note_lap

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_PROBABILITIES: Final = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    *(0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)

KEPT: Final = Kept()
"""For what every ranking does; all else is shown at once."""

WORKERS: Final = Gauge("ctr_workers", "Processes that answer.", multiprocess_mode="livesum")
REQUESTS: Final = Counter("ctr_requests_total", "Answers by route and status.", ["route", "status"])
REQUEST_SECONDS: Final = BulkHistogram(
    "ctr_request_seconds",
    "From the first byte of a request to the last of its answer.",
    ["route"],
    buckets=_SECONDS,
)
STAGES: Final = BulkHistogram("ctr_stage_seconds", "Seconds by stage.", ["stage"], buckets=_SECONDS)
CANDIDATES: Final = Counter("ctr_candidates_total", "Candidates asked for.")
ROWS: Final = Counter(
    "ctr_row_cache_total", "Encoded videos by whether they were in memory.", ["outcome"]
)
CACHED_ROWS: Final = Gauge(
    "ctr_cached_rows", "Encoded videos in memory.", multiprocess_mode="livesum"
)
ROWS_IN_FLIGHT: Final = Gauge(
    "ctr_candidates_in_flight",
    "Candidates being ranked or waiting to be, each request counted as 200 more.",
    multiprocess_mode="livesum",
)
JOBS_PER_RUN: Final = BulkHistogram(
    "ctr_jobs_per_run",
    "Requests that one run scored together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
EXPIRED: Final = Counter("ctr_expired_total", "Rankings whose deadline passed.")
GUESSES: Final = Counter(
    "ctr_guesses_total",
    "Scores computed from the profile in memory while Redis was asked, by whether it was right.",
    ["outcome"],
)
EVENTS: Final = Counter("ctr_events_total", "Events by verdict.", ["verdict"])
PROFILES: Final = Counter(
    "ctr_profile_cache_total", "Profiles by where they came from.", ["outcome"]
)
PROFILE_LAG: Final = Histogram(
    "ctr_profile_lag_seconds",
    "From an acknowledged click to the stored profile, in the background.",
    buckets=_SECONDS,
)
PROFILES_WAITING: Final = Gauge(
    "ctr_profiles_waiting", "Users in the background queue.", multiprocess_mode="livesum"
)
DEGRADED: Final = Counter("ctr_degraded_total", "Degraded answers by level.", ["level"])
REDIS_FAILURES: Final = Counter(
    "ctr_redis_failures_total", "Calls of Redis given up, by error.", ["error"]
)
REDIS_RETRIES: Final = Counter("ctr_redis_retries_total", "Calls of Redis tried again.")
REDIS_CIRCUIT_OPEN: Final = Gauge(
    "ctr_redis_circuit_open",
    "1 where calls of Redis fail at once; of several workers, how many.",
    multiprocess_mode="livesum",
)
MODEL_FAILURES: Final = Counter(
    "ctr_model_failures_total", "Promoted versions that could not be opened."
)
SCORE: Final = BulkHistogram(
    "ctr_score",
    "Probability of a click of one candidate, drawn at random, of each ranking.",
    buckets=_PROBABILITIES,
)
_MODEL_CREATED: Final = Gauge(
    "ctr_model_created_timestamp_seconds",
    "When a version that answers, or has answered, was published.",
    ["name", "version"],
    multiprocess_mode="livemax",
)
_MODEL_INFO: Final = Gauge(
    "ctr_model_info",
    "1 for the version that answers.",
    ["name", "version"],
    multiprocess_mode="livemax",
)


def show_model(manifest: Manifest, *, serving: bool) -> None:
    """Say whether a version answers, and when it was published."""
    labels = manifest.model_name, manifest.version
    _MODEL_INFO.labels(*labels).set(float(serving))
    # A version that cannot say when it was made is shown without an age.
    with suppress(ValueError):
        created = datetime.fromisoformat(manifest.created_at)
        _MODEL_CREATED.labels(*labels).set(created.timestamp())


def show_score(probabilities: npt.NDArray[np.float64]) -> None:
    """Count the score of one candidate of a ranking; none where that candidate has no score.

    All of them would cost a ranking of 200 candidates five times as much as this one does.

    Args:
        probabilities: [N], NaN for a candidate without a score.
    """
    if len(probabilities):
        drawn = float(probabilities[int(random.random() * len(probabilities))])
        if not math.isnan(drawn):
            KEPT.observe(SCORE, drawn)


class stage:  # noqa: N801  reads as the function that it replaces
    """Measures one stage of a request: ``with stage(name):``.

    Args:
        name: of the stage in the metrics.
        lap: what it is called in the timing of the request; without one it is not in there.
    """

    __slots__ = ("_lap", "_name", "_start")

    def __init__(self, name: str, lap: str | None = None) -> None:
        self._name = name
        self._lap = lap

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        note_stage(self._name, self._start, time.perf_counter(), self._lap)


def note_stage(name: str, start: float, end: float, lap: str | None = None) -> None:
    """Note a stage that :class:`stage` could not measure; times by ``time.perf_counter()``."""
    KEPT.observe(_of_stage(name), end - start)
    if lap is not None:
        note_lap(lap, start, end)


def note_request(route: str, status: int | None, seconds: float) -> None:
    """Note a request that has ended.

    Args:
        route: there are few; what matches none counts as one.
        status: of its answer; ``None`` where its caller went away before.
        seconds: it took.
    """
    KEPT.count(_requests(route, status))
    KEPT.observe(_request_seconds(route), seconds)


@cache
def _requests(route: str, status: int | None) -> Counter:
    return REQUESTS.labels(route, str(status))


@cache
def _request_seconds(route: str) -> BulkHistogram:
    return REQUEST_SECONDS.labels(route)


@cache
def _of_stage(name: str) -> BulkHistogram:
    # Looking a label up costs more than counting.
    return STAGES.labels(name)


def exposition() -> bytes:
    """Write all metrics, of all workers, in Prometheus' text format."""
    if _MULTIPROCESS not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    with cleared(Path(os.environ[_MULTIPROCESS])):
        return generate_latest(registry)


def forget_process() -> None:
    """Hand over what is kept, and take this process out of the gauges of several workers."""
    KEPT.flush()
    if _MULTIPROCESS in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
