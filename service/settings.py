"""What an operator can set: flags of the command line, or variables with the prefix CTR_."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store import Device, find_device
from service.lifetimes import Lifetimes

_DAY: Final = 86_400.0
_Count = Annotated[int, Field(ge=1)]
_Days = Annotated[float, Field(ge=0)]


class Settings(BaseSettings):
    """Frozen; made once per process.

    Attributes:
        model_store: directory of published versions.
        redis_url: where state lives, see [state.md](state.md#addresses); ``REDIS_URL`` is taken
            where this is not set; without either an embedded Redis is started.
        embedded_fsync: when the embedded Redis calls a write safe.
        host: address to listen on.
        port: port to listen on.
        workers: processes that answer.
        wait_for_model: start without a usable version, not ready until there is one.
        data_dir: files of the embedded Redis and of the metrics of several workers.
        keep_alive_seconds: how long an idle connection stays open: longer than a proxy in front
            keeps it, or requests meet a connection that is just being closed.
        drain_notice_seconds: how long after SIGTERM a process still takes connections, no longer
            ready, so that whoever balances the load can look elsewhere.
        drain_seconds: how long after that requests may take to finish; the rest is broken off.
        log_level: least level that is logged.
        log_format: json, text, or auto: text on a terminal, JSON elsewhere.
        access_log: requests that get a line in the log: all; notable ones, which failed (5xx, or
            the caller went away) or took long; or off.
        slow_ms: a request that takes longer is notable.
        traces: send OpenTelemetry traces; needs the extra ``otel``, and is set up by the standard
            ``OTEL_`` variables.
        max_body_bytes: longest request body.
        max_videos: videos per call.
        max_bulk_videos: videos per call in binary form.
        max_events: events per call.
        max_candidates: candidates per call.
        future_tolerance_seconds: how far an event's time may be ahead of this clock.
        redis_timeout_seconds: how long one answer of Redis may take; a call makes three attempts.
        user_idle_days: users without a click for as long expire; 0 keeps them for ever.
        video_idle_days: videos neither registered again nor clicked for as long expire, those in
            a history never; 0 keeps all for ever.
        deletion_window_days: how long clicks from before a user's deletion are refused.
        change_poll_seconds: how often this process looks for videos that others changed.
        model_poll_seconds: how often the promoted version is looked up.
        row_cache_mb: memory for encoded videos per process.
        last_profiles: profiles kept per process for when Redis is gone.
        profile_queue: users waiting for a background profile, more are dropped.
        profile_patience_seconds: how long they wait at most.
        max_candidates_in_flight: candidates that are ranked or wait per process, each request
            counted as 200 more; what is beyond gets 429.
        score_timeout_ms: how long a ranking may take; callers may ask for less.
        threads: threads for model runs per process.
        warm_videos: videos used last that are encoded before a process is ready, or a promoted
            version answers.
        warm_seconds: how long that may take.
        device: cpu, cuda, or auto: cuda where there is one.
        gpu_memory_mb: of a CUDA device for each of a version's three graphs; 0 for no limit.
        gpu_arena: how a CUDA device's memory grows: by what is asked for, or to the next power of
            two.
        gpu_window_microseconds: how long a run on a CUDA device waits for more requests.
        head: what scores candidates: graph, ONNX Runtime; auto, on a CPU the compiled head, in about
            half the time, where it is built, the processor has AVX2 and the model is one for it.
        inline_microseconds: a ranking whose model run is expected to take less is run on the event
            loop, where handing it to a thread would take as long; 0 never does.
    """

    model_config = SettingsConfigDict(
        env_prefix="CTR_",
        # A variable that is set to nothing is not set.
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
    )

    model_store: Path
    redis_url: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("CTR_REDIS_URL", "REDIS_URL"))
    ] = None
    embedded_fsync: Literal["everysec", "always"] = "everysec"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: _Count = 1
    wait_for_model: bool = False
    data_dir: Path = Path("var")
    keep_alive_seconds: _Count = 75
    drain_notice_seconds: Annotated[float, Field(ge=0)] = 1.0
    drain_seconds: _Count = 10
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    access_log: Literal["all", "notable", "off"] = "notable"
    slow_ms: Annotated[float, Field(ge=0)] = 250.0
    traces: bool = False
    max_body_bytes: _Count = 64 * 1024 * 1024
    max_videos: _Count = 1_000
    max_bulk_videos: _Count = 50_000
    max_events: _Count = 10_000
    max_candidates: _Count = 5_000
    future_tolerance_seconds: Annotated[float, Field(ge=0)] = 60.0
    redis_timeout_seconds: Annotated[float, Field(gt=0)] = 1.0
    user_idle_days: _Days = 180.0
    video_idle_days: _Days = 90.0
    deletion_window_days: Annotated[float, Field(gt=0)] = 7.0
    change_poll_seconds: Annotated[float, Field(gt=0)] = 0.25
    model_poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    row_cache_mb: _Count = 512
    last_profiles: _Count = 10_000
    profile_queue: _Count = 10_000
    profile_patience_seconds: Annotated[float, Field(gt=0)] = 5.0
    max_candidates_in_flight: _Count = 20_000
    score_timeout_ms: _Count = 2_000
    threads: Annotated[int, Field(ge=1, json_schema_extra={"shown": "one a core, at most 4"})] = (
        min(4, os.cpu_count() or 1)
    )
    warm_videos: Annotated[int, Field(ge=0)] = 20_000
    warm_seconds: Annotated[float, Field(gt=0)] = 2.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_memory_mb: Annotated[int, Field(ge=0)] = 2_048
    gpu_arena: Literal["same_as_requested", "next_power_of_two"] = "same_as_requested"
    gpu_window_microseconds: Annotated[float, Field(ge=0)] = 300.0
    head: Literal["auto", "graph"] = "auto"
    inline_microseconds: Annotated[float, Field(ge=0)] = 2_000.0

    @property
    def redis_address(self) -> str | None:
        """Where state lives, as a client needs it: with its password, never to be shown."""
        return self.redis_url.get_secret_value() or None if self.redis_url else None

    def find_device(self) -> Device:
        """Choose where graphs run.

        Raises:
            DeviceError: what is wanted is not there.
        """
        return find_device(
            self.device,
            memory_mb=self.gpu_memory_mb,
            arena=self.gpu_arena,
            graphs_only=self.head == "graph",
        )

    @property
    def lifetimes(self) -> Lifetimes:
        """How long facts are kept."""
        return Lifetimes(
            user_idle=self.user_idle_days * _DAY,
            video_idle=self.video_idle_days * _DAY,
            deletion_window=self.deletion_window_days * _DAY,
        )
