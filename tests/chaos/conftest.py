"""Clients that never give up, a service that is killed, and a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).parents[2]
PROBLEMS = {429, 503, 504}


@dataclass
class Ledger:
    """What clients sent, what was acknowledged, and how they were answered."""

    sent: dict[str, set[tuple[int, str]]] = field(default_factory=lambda: defaultdict(set))
    acknowledged: dict[str, dict[tuple[int, str], float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    answers: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    behind: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.answers[what] += 1


class Clients:
    """Several clients, each with users of its own, posting until stopped."""

    def __init__(self, base_url: str, number: int = 4) -> None:
        self.ledger = Ledger()
        self._base_url = base_url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(number)]
        self._threads.append(threading.Thread(target=self._keep_scoring))
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    @property
    def acknowledged(self) -> int:
        return sum(map(len, self.ledger.acknowledged.values()))

    def _run(self, number: int) -> None:
        serial = 0
        with httpx.Client(base_url=self._base_url, timeout=15) as client:
            while not self._stop.is_set():
                # A user is full with 160 clicks; a new one before that keeps all of them visible.
                user = f"client-{number}-{serial // 120}"
                batch = [
                    (int(time.time() * 1e3) - 500 + i, f"v{(serial + i) % 9}") for i in range(3)
                ]
                serial += 3
                version = self._post(client, user, batch)
                if version is not None:
                    self._score(client, user, version)
                time.sleep(0.005)

    def _keep_scoring(self) -> None:
        """Score users all the time, whatever becomes of their events."""
        number = 0
        with httpx.Client(base_url=self._base_url, timeout=15) as client:
            while not self._stop.is_set():
                number += 1
                self._score(client, "stranger" if number % 4 == 0 else "client-0-0", 0)
                time.sleep(0.01)

    def _post(self, client: httpx.Client, user: str, batch: list[tuple[int, str]]) -> int | None:
        events = [
            {"user_id": user, "video_id": v, "timestamp": t, "event_id": f"{user}-{t}-{v}"}
            for t, v in batch
        ]
        self.ledger.sent[user].update(batch)
        give_up = time.monotonic() + 45
        while time.monotonic() < give_up:
            answer = self._ask(client, "/events", {"events": events})
            if answer is not None and answer.status_code == 200:
                body = answer.json()
                for verdict, click in zip(body["results"], batch, strict=True):
                    if verdict["status"] in ("accepted", "late", "duplicate"):
                        self.ledger.acknowledged[user][click] = time.time()
                    else:
                        self.failures.append(f"{verdict} for {click}")
                return body["users"][user]["history_version"]
            self.ledger.retried += 1
            time.sleep(0.05)
        self.failures.append(f"events of {user} never got through")
        return None

    def _score(self, client: httpx.Client, user: str, version: int) -> None:
        body = {
            "user_id": user,
            "candidates": [{"video_id": "c", "category": 1, "features": [1, 2, 3]}],
            "min_history_version": version,
        }
        answer = self._ask(client, "/score", body, also={409})
        if answer is not None and answer.status_code == 200:
            told = answer.json()
            if "degraded" in told:
                self.ledger.count(f"degraded {told['degraded']['level']}")
            if told["history"]["version"] < version:
                self.failures.append(f"score of {user} is behind {version}")
        elif answer is not None and answer.status_code == 409:
            self.ledger.behind += 1

    def _ask(
        self, client: httpx.Client, path: str, body: object, also: set[int] = frozenset()
    ) -> httpx.Response | None:
        try:
            answer = client.post(path, json=body)
        except httpx.TransportError:
            self.ledger.count("no answer")
            return None
        self.ledger.count(f"{path} {answer.status_code}")
        if answer.status_code not in {200, *PROBLEMS, *also}:
            self.failures.append(f"{path} answered {answer.status_code}: {answer.text[:300]}")
        if answer.status_code != 200 and "problem" not in answer.headers["content-type"]:
            self.failures.append(f"{path} answered {answer.status_code} without a problem")
        return answer


@dataclass
class Verdict:
    """What is left of what was acknowledged."""

    lost: dict[tuple[str, int, str], float]
    acknowledged: int
    stored: int


def verify(base_url: str, clients: Clients, *, cut: bool = False) -> Verdict:
    """Compare every history with the ledger; nothing doubled, nothing that nobody sent.

    Every call was answered, unless the service itself was killed (``cut``).
    """
    lost = {}
    stored_in_all = 0
    with httpx.Client(base_url=base_url, timeout=15) as client:
        for user, sent in clients.ledger.sent.items():
            blocks = client.get(f"/users/{user}").json()["history"]["blocks"]
            stored = [(c["timestamp"], c["video_id"]) for block in blocks for c in block]
            assert stored == sorted(set(stored)), f"{user} has a click twice, or out of order"
            assert set(stored) <= sent, f"{user} has clicks that nobody sent"
            stored_in_all += len(stored)
            for click, moment in clients.ledger.acknowledged[user].items():
                if click not in stored:
                    lost[user, *click] = moment
    assert clients.failures == []
    assert cut or clients.ledger.answers["no answer"] == 0
    return Verdict(lost, clients.acknowledged, stored_in_all)


def report(name: str, clients: Clients, verdict: Verdict, healed: float) -> None:
    """Print what happened, for `make chaos`."""
    answers = ", ".join(f"{what}: {n}" for what, n in sorted(clients.ledger.answers.items()))
    print(  # noqa: T201  what `make chaos` is read for
        f"\n{name}: {verdict.acknowledged} acknowledged, {len(verdict.lost)} lost, "
        f"{clients.ledger.retried} calls repeated, healed after {healed:.1f} s\n  {answers}"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """``python -m service`` with two workers, to be killed and started again on its port."""

    def __init__(self, store: Path, redis_url: str, directory: Path) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._log = directory / "service.log"
        self._command = [sys.executable, "-m", "service", "--model-store", str(store)]
        self._command += ["--redis-url", redis_url, "--port", str(self.port), "--workers", "2"]
        self._command += ["--data-dir", str(directory / "data")]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)

    def restart(self) -> None:
        self.process = self._start()

    def workers(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = []
        for child in map(int, tasks.read_text().split()):
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return found

    def kill(self) -> None:
        """Kill it and its workers, as a machine that goes down does."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=40)

    def wait_until_strict(self, seconds: float = 40) -> float:
        """Wait until a true answer is given; return how long it took."""
        start = time.monotonic()
        body = {
            "user_id": "prober",
            "candidates": [{"video_id": "c", "category": 1, "features": [1, 2, 3]}],
            "strict": True,
        }
        good = 0
        while time.monotonic() - start < seconds:
            with suppress(httpx.TransportError):
                # Fresh connections reach both workers.
                good = good + 1 if httpx.post(f"{self.base_url}/score", json=body).is_success else 0
                if good == 8:
                    return time.monotonic() - start
            time.sleep(0.05)
        raise AssertionError(f"not healed after {seconds} s:\n{self._log.read_text()[-3000:]}")


@contextmanager
def service(store: Path, redis_url: str, directory: Path) -> Iterator[Service]:
    """Run a service; in the end it must stop when told."""
    running = Service(store, redis_url, directory)
    try:
        running.wait_until_strict()
        yield running
        assert running.stop() == 0
    finally:
        if running.process.poll() is None:
            running.kill()


class Proxy:
    """A TCP proxy before Redis that passes, delays, stalls or cuts."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.mode = "pass"
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.2, self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Break all connections, in the middle of whatever they carry."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = self._loop.run_until_complete(serving)
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                while self.mode == "stall":  # noqa: ASYNC110  set by another thread
                    await asyncio.sleep(0.02)
                if self.mode == "delay":
                    await asyncio.sleep(0.02)
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()
