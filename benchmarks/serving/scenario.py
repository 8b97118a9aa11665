"""What every serving benchmark runs on: a model, a Redis with users and videos, a service.

The network is of the paper's full size (512 features, 512 categories, 128-wide embeddings, 8 blocks
of 20 clicks). ``live`` has all its units alive, the worst case; ``pruned`` has as many as the
weights that the authors released: coupled decay killed the others in training.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from redis import Redis

from model_store import Click, ModelStore
from service.embedded_redis import find_server
from service.state import NewClick, State, Video
from training.export import publish
from training.models.thacil import Thacil, ThacilShape

ROOT = Path(__file__).parents[2]
SHAPE = ThacilShape(feature_dim=512, num_categories=512)
USERS, VIDEOS, CLICKS = 200, 20_000, 160
START_MS = 1_750_000_000_000
ALIVE = {"target_attention": 6, "item_attention": 11, "category_attention": 6, "hidden": 110}
"""Units of each layer that the released weights have alive."""


def make_network(*, pruned: bool) -> Thacil:
    """Make a network with seeded random weights, of which attention makes distinct use."""
    torch.manual_seed(1)
    network = Thacil(SHAPE).eval()
    with torch.no_grad():
        for name in ("target_attention", "item_attention", "category_attention"):
            attention = getattr(network, name)
            attention.score.weight.mul_(4.0)
            if pruned:
                attention.score.weight[:, ALIVE[name] :] = 0.0
        if pruned:
            network.output.weight[:, ALIVE["hidden"] :] = 0.0
        network.output.bias.fill_(-1.5)
    return network


def publish_network(root: Path, network: Thacil) -> ModelStore:
    """Publish and promote a network."""
    store = ModelStore(root)
    store.promote(publish(network, store))
    return store


def user_id(number: int) -> str:
    """Name a user."""
    return f"user{number:05d}"


def video_id(number: int) -> str:
    """Name a video."""
    return f"{number:07d}"


async def fill(redis_url: str) -> None:
    """Put users with full histories and all videos into Redis."""
    rng = np.random.default_rng(7)
    state = State(redis_url, timeout_seconds=10.0)
    for start in range(0, VIDEOS, 2_000):
        features = rng.standard_normal((2_000, 512)).astype(np.float16)
        videos = [
            (video_id(start + i), Video(int(rng.integers(512)), row))
            for i, row in enumerate(features)
        ]
        await state.register(videos)
    for number in range(USERS):
        seen = rng.choice(VIDEOS, CLICKS, replace=False).tolist()
        clicks = [Click(START_MS + 1_000 * i, video_id(v)) for i, v in enumerate(seen)]
        await state.append([NewClick(user_id(number), click) for click in clicks])
    await state.close()


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """Run a redis-server with an append-only file on a port; yield its URL."""
    binary = shutil.which("redis-server") or str(find_server())
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    flags = ["--port", str(port), "--dir", str(directory), "--save", "", "--appendonly", "yes"]
    process = subprocess.Popen([binary, *flags], stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port) as client:
            _wait(lambda: bool(client.ping()), process, "redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers HTTP.

    Attributes:
        port: on loopback.
        process: the parent, where there are several.
        ready_seconds: from its start to the first answer.
    """

    port: int
    process: subprocess.Popen[bytes]
    ready_seconds: float

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of it and its children."""
        return sum(_cpu_seconds(pid) for pid in _family(self.process.pid))

    def rss_mb(self) -> float:
        """Return the largest resident memory of it and its children."""
        return max(_rss_mb(pid) for pid in _family(self.process.pid))


@contextmanager
def server(
    command: Sequence[str],
    *,
    port: int,
    path: str = "/health/ready",
    log: Path,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    seconds: float = 60.0,
) -> Iterator[Server]:
    """Run a command until it answers ``path`` with 200; ended at the end."""
    with log.open("ab") as file:
        begin = time.perf_counter()
        process = _start(command, file, env or {}, cwd)
    try:
        _wait(lambda: _is_up(port, path), process, f"{command[0]}: see {log}", seconds)
        yield Server(port, process, time.perf_counter() - begin)
    finally:
        for pid in reversed(_family(process.pid)):
            _signal(pid)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def service(
    store: ModelStore,
    redis_url: str,
    log: Path,
    *,
    workers: int = 1,
    log_level: str = "warning",
    **env: str,
) -> Iterator[Server]:
    """Run the service as its users do."""
    port = free_port()
    command = [sys.executable, "-m", "service", "--model-store", str(store.root)]
    command += ["--redis-url", redis_url, "--port", str(port), "--workers", str(workers)]
    command += ["--data-dir", str(log.parent / "data"), "--log-level", log_level]
    with server(command, port=port, log=log, env=env) as running:
        yield running


def score_bodies(count: int, candidates: int, *, seed: int = 3) -> list[bytes]:
    """Make bodies of ``POST /score``, each of another user and other candidates."""
    rng = np.random.default_rng(seed)
    bodies = []
    for number in range(count):
        chosen = rng.choice(VIDEOS, candidates, replace=False).tolist()
        body = {
            "user_id": user_id(number % USERS),
            "candidates": [{"video_id": video_id(v)} for v in chosen],
        }
        bodies.append(json.dumps(body).encode())
    return bodies


def filled(redis_url: str) -> str:
    """Fill a Redis; return its URL."""
    asyncio.run(fill(redis_url))
    return redis_url


def _start(
    command: Sequence[str], log: IO[bytes], env: dict[str, str], cwd: Path
) -> subprocess.Popen[bytes]:
    # One thread each: what computes in parallel are requests.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        [*command], cwd=cwd, stdout=log, stderr=log, env={**os.environ, **threads, **env}
    )


def _is_up(port: int, path: str) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b" 200 " in connection.recv(64)


def _wait(
    condition: object, process: subprocess.Popen[bytes], what: str, seconds: float = 30.0
) -> None:
    assert callable(condition)  # noqa: S101
    deadline = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with status {process.returncode}")
        try:
            if condition():
                return
        except Exception:  # noqa: BLE001, S110  not yet
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} is not up after {seconds:.0f} s")
        time.sleep(0.01)


def _family(pid: int) -> list[int]:
    found = [pid]
    for place in found:
        tasks = Path(f"/proc/{place}/task")
        for task in tasks.iterdir() if tasks.exists() else ():
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:
                continue
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def _signal(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, 15)
