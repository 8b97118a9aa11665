"""Whatever is killed, cut, stalled or full: what was acknowledged is there, once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from model_store import ModelStore
from service.embedded_redis import find_server

from ..service.conftest import tiny_draft  # noqa: TID252  tests are no package
from ..state.conftest import cluster, free_port, start_server  # noqa: TID252
from .conftest import Clients, Proxy, report, service, verify

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

AOF = ("--appendonly", "yes")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    store.promote(store.publish(tiny_draft()))
    return store.root


class KillableRedis:
    """A redis-server that is killed and started again on its files."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.port = free_port()
        self._directory, self._flags = directory, flags
        self.process = self._start()

    def _start(self):
        return start_server(find_server(), self._directory, *self._flags, port=self.port)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def client(self) -> Redis:
        return Redis(port=self.port)


@pytest.fixture
def redis(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[KillableRedis]:
    fsync = getattr(request, "param", "everysec")
    running = KillableRedis(tmp_path, *AOF, "--appendfsync", fsync)
    yield running
    running.kill()


@pytest.mark.parametrize("redis", ["always", "everysec"], indirect=True)
def test_redis_is_killed(
    redis: KillableRedis, store: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL and restart, twice: nothing lost under always, a second's worth under everysec."""
    kills = []
    with service(store, f"redis://127.0.0.1:{redis.port}/0", tmp_path) as running:
        with Clients(running.base_url) as clients:
            for _ in range(2):
                time.sleep(1.5)
                redis.kill()
                kills.append(time.time())
                time.sleep(1.5)
                redis.restart()
                healed = running.wait_until_strict()
            time.sleep(1)
        verdict = verify(running.base_url, clients)
    fsync = request.node.callspec.params["redis"]
    report(f"redis killed twice, appendfsync {fsync}", clients, verdict, healed)
    answers = clients.ledger.answers
    assert verdict.acknowledged > 100
    assert answers["degraded last_profile"] + answers["degraded no_history"] > 0
    if fsync == "always":
        assert not verdict.lost
    else:
        assert all(
            any(kill - 1 <= moment <= kill + 0.1 for kill in kills)
            for moment in verdict.lost.values()
        )


def test_service_is_killed(redis: KillableRedis, store: Path, tmp_path: Path) -> None:
    """A worker, then all of it: clients that retry find everything there, once."""
    with service(store, f"redis://127.0.0.1:{redis.port}/0", tmp_path) as running:
        with Clients(running.base_url) as clients:
            time.sleep(1.5)
            os.kill(running.workers()[0], signal.SIGKILL)
            time.sleep(2.5)
            running.kill()
            time.sleep(0.5)
            running.restart()
            healed = running.wait_until_strict()
            time.sleep(1)
        verdict = verify(running.base_url, clients, cut=True)
    report("a worker killed, then the service", clients, verdict, healed)
    assert not verdict.lost
    assert clients.ledger.answers["no answer"] > 0


def test_the_way_to_redis_misbehaves(redis: KillableRedis, store: Path, tmp_path: Path) -> None:
    """Stalled, cut in the middle, delayed: retries heal it, or a clear 503 says so."""
    proxy = Proxy(redis.port)
    flags = f"redis://127.0.0.1:{proxy.port}/0"
    with service(store, flags, tmp_path) as running:
        with Clients(running.base_url) as clients:
            time.sleep(1)
            for _ in range(20):
                proxy.cut()
                time.sleep(0.1)
            proxy.mode = "delay"
            time.sleep(2)
            proxy.mode = "stall"
            time.sleep(5)
            proxy.mode = "pass"
            healed = running.wait_until_strict()
            time.sleep(1)
        verdict = verify(running.base_url, clients)
    proxy.close()
    report("cut twenty times, delayed, stalled for five seconds", clients, verdict, healed)
    assert not verdict.lost
    assert clients.ledger.answers["/events 503"] > 0


def test_redis_is_full(redis: KillableRedis, store: Path, tmp_path: Path) -> None:
    """Events get 503 while Redis takes nothing new; scores go on, true and not degraded."""
    with service(store, f"redis://127.0.0.1:{redis.port}/0", tmp_path) as running:
        with redis.client() as admin, Clients(running.base_url) as clients:
            time.sleep(1.5)
            degraded = clients.ledger.answers["degraded last_profile"]
            admin.config_set("maxmemory", 1)
            time.sleep(1)
            body = {
                "user_id": "client-0-0",
                "candidates": [{"video_id": "c", "category": 1, "features": [1, 2, 3]}],
                "strict": True,
            }
            with httpx.Client(base_url=running.base_url) as client:
                for _ in range(5):
                    assert client.post("/score", json=body).status_code == 200
            assert clients.ledger.answers["degraded last_profile"] == degraded
            time.sleep(1)
            admin.config_set("maxmemory", 0)
            healed = running.wait_until_strict()
            time.sleep(1)
        verdict = verify(running.base_url, clients)
    report("redis full for two seconds", clients, verdict, healed)
    assert not verdict.lost
    assert clients.ledger.answers["/events 503"] > 0


def test_a_cluster_master_fails_over(store: Path, tmp_path: Path) -> None:
    """A master is killed, its replica takes over: at most what was not yet replicated is lost."""
    if not shutil.which("redis-server"):
        find_server()
    with cluster(tmp_path / "cluster", replicas=1) as ports:
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        with service(store, url, tmp_path) as running:
            with Clients(running.base_url) as clients:
                time.sleep(2)
                with Redis(port=ports[1]) as master:
                    pid = master.info("server")["process_id"]
                os.kill(pid, signal.SIGKILL)
                killed = time.time()
                time.sleep(1)
                healed = running.wait_until_strict()
                time.sleep(2)
            verdict = verify(running.base_url, clients)
    report("a cluster master killed", clients, verdict, healed)
    assert verdict.acknowledged > 100
    # Replication is asynchronous: a second's worth at most.
    assert all(killed - 1 <= moment <= killed + 0.1 for moment in verdict.lost.values())


def test_a_service_waits_for_redis(store: Path, tmp_path: Path) -> None:
    """Started before Redis it is not ready, and is so by itself once Redis is there."""
    running_redis = KillableRedis(tmp_path, *AOF)
    running_redis.kill()
    from .conftest import Service  # noqa: PLC0415

    running = Service(store, f"redis://127.0.0.1:{running_redis.port}/0", tmp_path)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert httpx.get(f"{running.base_url}/health/ready").status_code == 503
                break
            except httpx.TransportError:
                time.sleep(0.1)
        running_redis.restart()
        running.wait_until_strict()
        assert httpx.get(f"{running.base_url}/health/ready").json()["redis"] == "up"
        # Told to stop while Redis stalls, it does.
        running_redis.process.send_signal(signal.SIGSTOP)
        httpx.post(f"{running.base_url}/score", json={"user_id": "u", "candidates": []})
        assert running.stop() == 0
    finally:
        running_redis.process.send_signal(signal.SIGCONT)
        running_redis.kill()
        if running.process.poll() is None:
            running.kill()
