"""The command line: ``python -m service [VERB]``; without a verb it serves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from pydantic import ValidationError

from model_store import ModelStore, ModelStoreError
from service.embedded_redis import EmbeddedRedisError, embedded_redis
from service.flags import flag_parser, from_environment, take_flags
from service.logs import configure_logs
from service.masking import secrets_of
from service.settings import Settings
from service.settings_page import faults_of

# No import here may lead to prometheus_client: it decides about several workers at import,
# and the variable that it looks at is set below.

_FACTORY = "service.app:create_app_from_env"
_SHARING_LOOP = "service.accepting:SharingLoop"
_WORKER_SECONDS = 60

_log = logging.getLogger("service")


class _DataDirError(Exception):
    """Files cannot be written where they should be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; ``serve`` where none is given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given and not given[0].startswith("-") else "serve"
    if verb == "serve":
        return serve(given)
    # Not above: what they import is not needed to serve.
    from service.commands import COMMANDS  # noqa: PLC0415

    if verb not in COMMANDS:
        known = ", ".join(["serve", *COMMANDS])
        print(f"service: no verb {verb!r}: there are {known}", file=sys.stderr)  # noqa: T201
        return 2
    return COMMANDS[verb](given)


def serve(arguments: Sequence[str]) -> int:
    """Run the service until a signal ends it; return the exit status."""
    description = "Rank micro-videos by the probability of a click."
    take_flags(flag_parser("python -m service [serve]", description), arguments)
    try:
        settings = from_environment()
    except ValidationError as exc:
        for fault in faults_of(exc):
            print(f"service: {fault}", file=sys.stderr)  # noqa: T201
        return 2
    configure_logs(settings.log_level, settings.log_format, secrets_of(settings.redis_address))
    if not (_is_address(settings.redis_address) and (not settings.traces or _can_trace())):
        return 1
    if not settings.wait_for_model:
        try:
            ModelStore(settings.model_store).open()
        except (ModelStoreError, OSError) as exc:
            _log.error("no usable model version: %s (--wait-for-model waits for one)", exc)
            return 1
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _serve(settings)
    except (EmbeddedRedisError, _DataDirError) as exc:
        _log.error("%s", exc)
        return 1
    return 0


def _serve(settings: Settings) -> None:
    with ExitStack() as stack:
        if settings.redis_address is None:
            os.environ["CTR_REDIS_URL"] = stack.enter_context(
                embedded_redis(settings.data_dir, fsync=settings.embedded_fsync)
            )
        if settings.workers > 1:
            directory = _metrics_directory(settings.data_dir)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(directory)
        uvicorn.run(
            _FACTORY,
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop=_SHARING_LOOP if settings.workers > 1 and find_spec("uvloop") else "auto",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here looks at the caller's address.
            proxy_headers=False,
            http="service.connections:LingeringProtocol",
            # There are none, and a connection that became one would be counted for ever.
            ws="none",
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.drain_seconds,
            # How long a worker may take to start, or to be heard of, before it is replaced.
            timeout_worker_healthcheck=_WORKER_SECONDS,
        )


def _metrics_directory(data_dir: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(
            prefix="metrics-", dir=data_dir.absolute(), ignore_cleanup_errors=True
        )
    except OSError as exc:
        raise _DataDirError(
            f"the workers' metrics cannot be kept in {data_dir}: {exc.strerror}; choose another "
            "--data-dir (CTR_DATA_DIR)"
        ) from exc


def _is_address(url: str | None) -> bool:
    # Not above: it leads to prometheus_client. Here that is harmless, for several workers are
    # processes that start from nothing, and one worker keeps its metrics in its memory.
    from service.state import AddressError, check_address  # noqa: PLC0415

    try:
        if url is not None:
            check_address(url)
    except AddressError as exc:
        _log.error("%s (--redis-url, CTR_REDIS_URL)", exc)
        return False
    return True


def _can_trace() -> bool:
    try:
        tracing = import_module("service.tracing")
    except ImportError as exc:
        fix = "pip install 'thacil-ctr[otel]', or set CTR_TRACES=false"
        _log.error("traces are wanted, and what they need is not installed (%s): %s", exc, fix)
        return False
    try:
        tracer = tracing.tracer_from_environment()
    except ValueError as exc:
        _log.error("traces cannot be set up: %s", exc)
        return False
    if tracer is not None:
        # Each worker has its own.
        asyncio.run(tracer.close())
    return True


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    # uvicorn raises the signal again once it has drained; Redis must still be stopped then.
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
