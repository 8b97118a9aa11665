"""Every form of address leads to the same state."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis import Redis

from model_store import Click
from service.embedded_redis import find_server
from service.state import AddressError, NewClick, State, StateDownError

from .conftest import free_port, redis_server, start_server, wait_for

START = 1_700_000_000_000


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:6379", "starts with 'http'"),
        ("localhost:6379", "starts with"),
        ("redis+sentinel://localhost:26379", "lacks the master's name"),
        ("redis+cluster://", "is no host"),
        ("redis+cluster://a,,b", "is no host"),
    ],
)
async def test_an_address_that_is_none_is_refused(url: str, words: str) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(AddressError, match=words):
        State(url)


async def test_credentials_and_database_of_an_address_count(tmp_path: Path) -> None:
    """A password opens, a wrong one is StateDownError, and a database is one of its own."""
    port = free_port()
    process = start_server(find_server(), tmp_path, port=port)
    try:
        with Redis(port=port) as admin:
            admin.config_set("requirepass", "s3:cret/é")
            admin.execute_command("AUTH", "s3:cret/é")
            state = State(f"redis://:s3%3Acret%2F%C3%A9@127.0.0.1:{port}/4")
            await state.append([NewClick("u", Click(START, "v"))])
            assert (await state.view("u", [])).position.length == 1
            await state.close()
            admin.execute_command("SELECT", 4)
            assert admin.dbsize() > 0
        wrong = State(f"redis://:wrong@127.0.0.1:{port}/4")
        with pytest.raises(StateDownError):
            await wrong.ping()
        await wrong.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(90)
async def test_sentinels_lead_to_the_master_also_after_a_failover(tmp_path: Path) -> None:
    """The master is found by its name; killed, its replica is found, with everything in it."""
    binary = find_server()
    first, second, watcher = free_port(), free_port(), free_port()
    master = start_server(binary, tmp_path / "master", port=first)
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {watcher}\ndir {tmp_path}\nsentinel monitor mine 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds mine 500\nsentinel failover-timeout mine 2000\n"
    )
    replica_of = ("--replicaof", "127.0.0.1", str(first))
    with redis_server(binary, tmp_path / "replica", *replica_of, port=second):
        sentinel = start_server(binary, tmp_path, port=watcher, conf=conf)
        try:
            with Redis(port=watcher, decode_responses=True) as told:
                wait_for(lambda: int(told.info("sentinel")["master0"]["slaves"]) == 1)
            state = State(f"redis+sentinel://127.0.0.1:{watcher}/mine/0")
            before = (await state.append([NewClick("u", Click(START, "v"))])).users["u"]
            with Redis(port=second) as copy:
                wait_for(lambda: copy.dbsize() > 0)
            master.kill()
            master.wait()
            deadline = time.monotonic() + 30
            while True:
                try:
                    after = (await state.append([NewClick("u", Click(START + 1, "v"))])).users["u"]
                    break
                except StateDownError:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)
            assert after.length == 2
            assert after.version > before.version
            await state.close()
        finally:
            for process in (sentinel, master):
                process.kill()
                process.wait()
