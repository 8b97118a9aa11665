"""A process that is told to end loses nobody's request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.load import post
from benchmarks.serving.steady import Outcome, keep_steady
from model_store import ModelStore

from .conftest import Started, started, wait_for

SCORE = {"user_id": "drained", "candidates": [{"video_id": f"v{i}"} for i in range(20)]}
EVENT = {"user_id": "drained", "video_id": "v1", "timestamp": 1_720_000_000_000}


def lines(service: Started, words: str) -> int:
    return service.log.read_text().count(words)


def steadily(service: Started, stop: threading.Event, found: list[Outcome], rate: float) -> None:
    score = post("/score", json.dumps(SCORE).encode())
    event = post("/events", json.dumps({"events": [EVENT]}).encode())

    async def load() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=lambda: (stop.wait(), loop.call_soon_threadsafe(ended.set))).start()
        requests = [score, score, score, event]
        port = service.client.base_url.port
        assert port is not None
        found.append(await keep_steady(port, requests, rate=rate, stop=ended, patience=60, most=32))

    asyncio.run(load())


@pytest.mark.timeout(400)
def test_a_rolling_restart_of_two_workers_loses_no_request(
    tmp_path: Path, store: ModelStore
) -> None:
    """200 requests a second, each sent once; SIGHUP replaces both workers, one by one."""
    found: list[Outcome] = []
    stop = threading.Event()
    flags = ("--workers", "2", "--drain-notice-seconds", "0.5", "--drain-seconds", "60")
    # A machine that is busy with other things may be late, or slower than that: it is no loss.
    flags += ("--score-timeout-ms", "60000")
    with started(store, tmp_path, *flags) as service:
        wait_for(lambda: lines(service, "Application startup complete") == 2)
        loading = threading.Thread(target=steadily, args=(service, stop, found, 200.0))
        loading.start()
        try:
            service.process.send_signal(signal.SIGHUP)
            wait_for(lambda: lines(service, "Finished server process") == 2, seconds=90)
        finally:
            stop.set()
            loading.join()
        assert service.client.get("/health/ready").is_success
        lines_ = map(json.loads, service.log.read_text().splitlines())
        workers = {line["process"] for line in lines_}
        # The parent, two workers and two that came after them.
        assert len(workers) == 5

    [outcome] = found
    assert outcome.sent > 200
    assert not outcome.failures
    assert outcome.lost == 0


def test_what_was_begun_is_finished(tmp_path: Path, store: ModelStore) -> None:
    """A request whose body is still coming when SIGTERM comes gets its answer."""
    body = json.dumps(SCORE).encode()
    with started(store, tmp_path, "--drain-seconds", "20") as service:
        address = ("127.0.0.1", service.client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[:50])
            # Known to have arrived: an answer on another connection came after it.
            service.client.get("/health/live")
            service.process.terminate()
            wait_for(lambda: lines(service, "Shutting down") == 1)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5)
            connection.sendall(body[50:])
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close" in answer
        assert service.process.wait(20) == 0


def test_readiness_goes_down_first(tmp_path: Path, store: ModelStore) -> None:
    """After SIGTERM the port stays open for a while: not ready, alive, and still answering."""
    with started(store, tmp_path, "--drain-notice-seconds", "60") as service:
        assert service.client.get("/health/ready").is_success
        service.process.terminate()
        wait_for(lambda: lines(service, "going away") == 1)
        ready = service.client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["detail"] == "this process is going away: ask another"
        assert ready.headers["connection"] == "close"
        assert service.client.get("/health/live").is_success
        score = service.client.post("/score", json=SCORE)
        assert score.is_success
        assert score.headers["connection"] == "close"
        # The second one cuts the notice short.
        service.process.terminate()
        assert service.process.wait(20) == 0


def test_a_request_that_is_on_its_way_finds_its_connection(
    tmp_path: Path, store: ModelStore
) -> None:
    """A connection without a request is not closed the moment the server shuts down."""
    with started(store, tmp_path) as service:
        address = ("127.0.0.1", service.client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            service.client.get("/health/live")
            service.process.terminate()
            wait_for(lambda: lines(service, "Shutting down") == 1)
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        assert service.process.wait(20) == 0


def test_what_takes_longer_than_the_limit_is_broken_off(tmp_path: Path, store: ModelStore) -> None:
    """A caller who never sends the rest does not keep the process."""
    with started(store, tmp_path, "--drain-seconds", "1") as service:
        address = ("127.0.0.1", service.client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            service.client.get("/health/live")
            service.process.terminate()
            assert service.process.wait(20) == 0
    assert "timeout graceful shutdown exceeded" in service.log.read_text()


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, store: ModelStore) -> None:
    """And counted no longer: its gauges go, what it counted stays, its files are cleared up."""
    with started(store, tmp_path, "--workers", "2") as service:
        wait_for(lambda: lines(service, "Application startup complete") == 2)

        def shown(name: str) -> float:
            with httpx.Client(base_url=service.client.base_url, timeout=20) as fresh:
                text = fresh.get("/metrics").text
            return sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith(name)
            )

        for _ in range(20):
            with httpx.Client(base_url=service.client.base_url, timeout=20) as fresh:
                fresh.post("/score", json=SCORE).raise_for_status()
        assert shown("ctr_workers ") == 2
        # Of other workers they are shown after a moment.
        wait_for(lambda: shown('ctr_requests_total{route="/score"') == 20)
        wait_for(lambda: shown('ctr_request_seconds_count{route="/score"') == 20)
        counted = observed = 20
        [directory] = tmp_path.glob("metrics-*")
        victims = {int(path.stem.rpartition("_")[2]) for path in directory.glob("counter_*.db")}
        os.kill(min(victims), signal.SIGKILL)
        wait_for(lambda: lines(service, "Application startup complete") == 3)

        assert shown("ctr_workers ") == 2
        assert shown('ctr_requests_total{route="/score"') == counted
        assert shown('ctr_request_seconds_count{route="/score"') == observed
        assert shown("ctr_model_info") == 1
        assert not list(directory.glob(f"*_{min(victims)}.db"))
        assert len(list(directory.glob("counter_*.db"))) == 3
