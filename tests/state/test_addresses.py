"""Every form of address leads to the same state."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis

from model_store import Click
from service.embedded_redis import find_server
from service.state import AddressError, NewClick, State, StateDownError

from .conftest import cluster, free_port, redis_7, redis_server, start_server, wait_for

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


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a server that speaks TLS, with a certificate that this process trusts."""
    if not shutil.which("openssl"):
        pytest.skip(
            "no openssl on the PATH to make a certificate for redis: apt-get install openssl"
        )
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=redis"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    flags = {"cert-file": certificate, "key-file": key, "ca-cert-file": certificate}
    told = [part for name, value in flags.items() for part in (f"--tls-{name}", str(value))]
    return [*told, "--tls-auth-clients", "no"]


@contextmanager
def one_by_tls(directory: Path, flags: list[str]) -> Iterator[str]:
    port = free_port()
    more = [*flags, "--tls-port", str(port)]
    with redis_server(redis_7(), directory, *more, port=free_port()):
        yield f"rediss://127.0.0.1:{port}/2"


@contextmanager
def cluster_by_tls(directory: Path, flags: list[str]) -> Iterator[str]:
    redis_7()
    with cluster(directory, tls=flags) as ports:
        yield "rediss+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@contextmanager
def sentinel_by_tls(directory: Path, flags: list[str]) -> Iterator[str]:
    port, watcher = free_port(), free_port()
    lines = [f"{name[2:]} {value}" for name, value in zip(flags[::2], flags[1::2], strict=True)]
    lines += [f"tls-port {watcher}", f"port {free_port()}", "tls-replication yes"]
    conf = directory / "sentinel.conf"
    conf.write_text("\n".join([*lines, f"sentinel monitor mine 127.0.0.1 {port} 1", ""]))
    with ExitStack() as stack:
        more = [*flags, "--tls-port", str(port)]
        stack.enter_context(redis_server(redis_7(), directory, *more, port=free_port()))
        plain = int(lines[-2].split()[1])
        sentinel = start_server(redis_7(), directory, port=plain, conf=conf)
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        yield f"rediss+sentinel://127.0.0.1:{watcher}/mine/2"


@pytest.mark.parametrize("serve", [one_by_tls, cluster_by_tls, sentinel_by_tls])
async def test_every_form_speaks_tls(serve, certificate: list[str], tmp_path: Path) -> None:
    """With a certificate that is trusted; nobody is reached with one that is not."""
    with serve(tmp_path, certificate) as url:
        state = State(url, timeout_seconds=10)
        new = [NewClick(f"u{i}", Click(START, f"v{i}")) for i in range(20)]
        assert (await state.append(new)).verdicts == ["accepted"] * 20
        assert (await state.view("u7", ["v7"])).position.length == 1
        await state.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", "/dev/null")
            stranger = State(url)
            with pytest.raises(StateDownError):
                await stranger.ping()
            await stranger.close()
