"""``python -m service doctor``: will the service run here, and if not, what is to be done.

Each check looks at the real thing: it opens the model version and replays its golden answers,
asks Redis and writes to it, compares clocks, writes where the service will write.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from model_store import COMPILED_HEAD, CPU, Device, DeviceError, ModelStore, ModelStoreError
from service import steps
from service.embedded_redis import EmbeddedRedisError, embedded_redis, running_redis
from service.findings import Finding, failed, passed, warned
from service.masking import masked_url
from service.redis_checks import check_server
from service.settings import Settings
from service.state import AddressError, StateDownError
from service.state.inspection import Server, inspect

NEEDED: Final = {
    "numpy": "1.26",
    "pydantic": "2.7",
    "fastapi": "0.115",
    "uvicorn": "0.51",
    "httptools": "0.6",
    "redis": "5.1",
    "prometheus-client": "0.20",
    "pydantic-settings": "2.4",
    "orjson": "3.10",
    "msgpack": "1.0.5",
    "msgspec": "0.19",
    "typing-extensions": "4.10",
    "tqdm": "4.66",
}
"""Packages that the service needs, and the least version of each."""
_RUNTIMES: Final = ("onnxruntime-gpu", "onnxruntime")
_LEAST_RUNTIME: Final = "1.24"
_FILES_FAIL, _FILES_WARN = 256, 1_024
_METRICS_BYTES: Final = 16 * 2**20
WORKER_MB: Final = 128
"""What a worker takes beside its caches: 112 MB after a start, and a little for requests."""
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def examine(settings: Settings) -> Iterator[Finding]:
    """Make all checks, in an order in which the first failure is the one to mend first."""
    yield _check_versions()
    yield _check_compiled()
    device = yield from _check_device(settings)
    yield _check_model(settings, device)
    yield from _check_redis(settings)
    yield _check_files()
    yield _check_metrics_directory(settings)
    yield _check_memory(settings)
    if settings.traces:
        yield _check_traces()


def _check_versions() -> Finding:
    name = "versions"
    found = {package: _version(package) for package in NEEDED}
    runtime = {package: _version(package) for package in _RUNTIMES}
    runtime = {package: text for package, text in runtime.items() if text}
    bad = [
        f"{package} {text or 'is missing'}, at least {NEEDED[package]} is needed"
        for package, text in found.items()
        if not text or _numbers(text) < _numbers(NEEDED[package])
    ]
    if not runtime:
        bad.append(f"onnxruntime is missing, at least {_LEAST_RUNTIME} is needed")
    bad += [
        f"{package} {text}, at least {_LEAST_RUNTIME} is needed"
        for package, text in runtime.items()
        if _numbers(text) < _numbers(_LEAST_RUNTIME)
    ]
    if bad:
        return failed(name, "; ".join(bad), fix="pip install -U 'thacil-ctr[service]'")
    shown = {"Python": platform.python_version(), **runtime, **found}
    return passed(name, ", ".join(f"{package} {text}" for package, text in shown.items()))


def _check_compiled() -> Finding:
    name = "compiled parts"
    absent = []
    if steps.COMPILED is None:
        absent.append(f"the steps around the head, a sixth more CPU time ({steps.WHY_NOT})")
    if COMPILED_HEAD.module is None:
        absent.append(f"the head, a third more ({COMPILED_HEAD.why_not})")
    if absent:
        return warned(
            name,
            f"not there, which costs rankings: {'; '.join(absent)}",
            fix="have g++ and Python's headers where thacil-ctr is installed, and install it again",
        )
    # Nothing to be done about it, and nothing wrong.
    head = "the score head" if COMPILED_HEAD.ways else f"no head ({COMPILED_HEAD.why_not})"
    return passed(name, f"there: ids, rows, order and JSON of a ranking; {head}")


def _check_device(settings: Settings) -> Generator[Finding, None, Device]:
    """Yield the finding; return the device that graphs will run on."""
    name = "device"
    try:
        device = settings.find_device()
    except DeviceError as exc:
        yield failed(name, str(exc), fix="CTR_DEVICE=cpu, or what is said above")
        return CPU
    yield passed(name, f"{settings.device} is asked for, {device.kind} is used")
    return device


def _check_model(settings: Settings, device: Device) -> Finding:
    name, store = "model store", ModelStore(settings.model_store)
    try:
        opened = store.open(device=device)
    except (ModelStoreError, OSError) as exc:
        fix = "publish and promote a version: python -m training export, then promote"
        if settings.wait_for_model:
            return warned(name, f"{exc}; the service will wait", fix=fix)
        return failed(name, str(exc), fix=fix)
    manifest, head = opened.manifest, opened.model.compiled_head
    way = f", its head compiled for {head.way} bits" if head else ""
    return passed(name, f"{manifest.version} opens on {device.kind}{way}, golden answers replayed")


def _check_redis(settings: Settings) -> Iterator[Finding]:
    name, shown, url = "redis", "", settings.redis_address
    try:
        if url is not None:
            shown = masked_url(url)
            servers = _inspected(url, settings)
        elif (running := running_redis(settings.data_dir)) is not None:
            shown = f"the embedded one of a running service in {settings.data_dir}"
            servers = _inspected(running, settings)
        else:
            shown = f"an embedded one, started in {settings.data_dir} to see whether it does"
            with embedded_redis(settings.data_dir, fsync=settings.embedded_fsync) as started:
                servers = _inspected(started, settings)
    except AddressError as exc:
        yield failed(name, str(exc), fix="CTR_REDIS_URL=redis://:PASSWORD@HOST:6379/0")
    except StateDownError as exc:
        fix = "is it up, is the address right, does a firewall stand between, is the password right"
        yield failed(name, f"{shown}: {exc}", fix=fix)
    except (EmbeddedRedisError, OSError) as exc:
        yield failed(name, str(exc), fix="CTR_REDIS_URL=... of a Redis that runs, or CTR_DATA_DIR")
    else:
        yield passed(name, shown)
        for server in servers:
            yield from check_server(
                server,
                timeout_seconds=settings.redis_timeout_seconds,
                tolerance_seconds=settings.future_tolerance_seconds,
            )


def _inspected(url: str, settings: Settings) -> list[Server]:
    return asyncio.run(inspect(url, timeout_seconds=settings.redis_timeout_seconds))


def _check_files() -> Finding:
    name, (soft, hard) = "open files", resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{soft} may be open at once: one a connection, 64 for Redis"
    fix = f"ulimit -n {min(65_536, hard) if hard > 0 else 65_536}, or LimitNOFILE= of the unit"
    if 0 <= soft < _FILES_FAIL:
        return failed(name, seen, fix=fix)
    if 0 <= soft < _FILES_WARN:
        return warned(name, seen, fix=fix)
    return passed(name, seen)


def _check_metrics_directory(settings: Settings) -> Finding:
    name = "metrics directory"
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if settings.workers == 1 and not given:
        return passed(name, "one worker needs none")
    directory = settings.data_dir if settings.workers > 1 else Path(given or "")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as exc:
        return failed(
            name,
            f"{directory}: {exc.strerror}",
            fix="CTR_DATA_DIR=/dev/shm/ctr, or one to write in",
        )
    free = shutil.disk_usage(directory).free
    seen = f"{directory} can be written, {free / 2**20:,.0f} MiB free"
    if free < _METRICS_BYTES:
        return failed(name, seen, fix="free some space: workers end when their metrics do not fit")
    return passed(name, seen)


def _check_memory(settings: Settings) -> Finding:
    name, limit = "memory", memory_limit()
    # While another version is made ready there are two caches.
    most = settings.workers * (2 * settings.row_cache_mb + WORKER_MB)
    seen = f"workers and row caches may grow to {most:,} MiB of {limit / 2**20:,.0f} MiB"
    if most * 2**20 > limit:
        return warned(name, seen, fix="lower CTR_ROW_CACHE_MB or CTR_WORKERS")
    return passed(name, seen)


def memory_limit() -> int:
    """Return how many bytes of memory this process may use, with all others beside it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_CGROUP.read_text()))
    except (OSError, ValueError):
        return machine


def _check_traces() -> Finding:
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        return failed(
            "traces",
            "wanted, not installed",
            fix="pip install 'thacil-ctr[otel]', or no CTR_TRACES",
        )
    from service.tracing import wanted_exporter  # noqa: PLC0415  not to be had without the extra

    try:
        exporter = wanted_exporter()
    except ValueError as exc:
        return failed("traces", str(exc), fix="unset it, or set it to one of those")
    if exporter != "otlp":
        return passed("traces", f"OTEL_TRACES_EXPORTER says {exporter}")
    target = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"
    )
    return passed("traces", f"sent to {masked_url(target)}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
