"""What surrounds a request: ids in answers and log, its timing, its line; nothing of its content."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from model_store import ModelStore
from service.access_log import AccessLog
from service.draining import Drain
from service.edge import Edge
from service.logs import configure_logs

from .conftest import ROOT, serving, wait_for

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
NOW = 1_720_000_000_000
PIECES = {"redis", "profile", "queue", "rows", "head", "total"}


def timing(answer: httpx.Response) -> dict[str, float]:
    parts = [part.strip().split(";dur=") for part in answer.headers["server-timing"].split(",")]
    return {name: float(dur) for name, dur in parts}


def rank(client: httpx.Client, user: str, *videos: str, **headers: str) -> httpx.Response:
    body = {"user_id": user, "candidates": [{"video_id": video} for video in videos]}
    return client.post("/score", json=body, headers=headers)


def put(client: httpx.Client, *videos: str) -> None:
    body = [{"video_id": v, "category": 1, "features": [0.1, 0.2, 0.3]} for v in videos]
    client.put("/videos", json={"videos": body}).raise_for_status()


def click(client: httpx.Client, user: str, video: str) -> httpx.Response:
    event = {"user_id": user, "video_id": video, "timestamp": NOW}
    return client.post("/events", json={"events": [event]})


class Log:
    """Lines of a running service."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in found if wanted.items() <= line.items()]

    def of(self, request_id: str) -> dict[str, Any]:
        wait_for(lambda: bool(self.lines(logger="service.access", request_id=request_id)))
        [line] = self.lines(logger="service.access", request_id=request_id)
        return line


@pytest.fixture(scope="module")
def talking(
    store: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Log]]:
    """A service that logs all it can."""
    directory = tmp_path_factory.mktemp("talking")
    with serving(store, directory, "--access-log", "all", "--log-level", "debug") as client:
        yield client, Log(directory / "service.log")


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/score", b'{"user_id": "u", "candidates": [{"video_id": "v"}]}', 200),
        ("POST", "/score", b"{", 400),
        ("POST", "/events", b"[]", 422),
        ("PUT", "/videos", b"x" * (64 * 2**20 + 1), 413),
        ("GET", "/health/live", None, 200),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/score", None, 405),
    ],
)
def test_every_answer_carries_the_ids_of_its_caller(
    client: httpx.Client, method: str, path: str, content: bytes | None, status: int
) -> None:
    """The request id, and the caller's trace with a span of its own; errors name the id."""
    headers = {"x-request-id": "mine-1", "traceparent": PARENT, "content-type": "application/json"}
    answer = client.request(method, path, content=content, headers=headers)

    assert answer.status_code == status, answer.text
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", answer.headers["traceparent"])
    assert answer.headers["traceparent"] != PARENT
    assert "total" in timing(answer)
    if status >= 400 or path == "/score":
        assert answer.json()["request_id"] == "mine-1"


def test_what_is_no_good_is_replaced(client: httpx.Client) -> None:
    """A long id, a trace of version ff, two traces: the answer has new ones."""
    for traces in ([f"ff-{TRACE}-{'1' * 16}-01"], [PARENT, PARENT], []):
        headers = [("x-request-id", "x" * 129), *(("traceparent", t) for t in traces)]
        body = {"user_id": "u", "candidates": [{"video_id": "v"}]}
        answer = client.post("/score", json=body, headers=headers)

        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert TRACE not in answer.headers["traceparent"]
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", answer.headers["traceparent"])


def test_the_timing_of_a_ranking_adds_up(client: httpx.Client) -> None:
    """Each piece is there, and all of them together take no longer than the whole."""
    put(client, "timed-1", "timed-2")
    click(client, "timer", "timed-1")
    packed = msgpack.packb({"user_id": "timer", "video_ids": ["timed-1", "timed-2"]})
    answers = [rank(client, "timer", "timed-1", "timed-2") for _ in range(20)]
    answers.append(
        client.post("/score", content=packed, headers={"content-type": "application/msgpack"})
    )
    for answer in answers:
        spent = timing(answer.raise_for_status())
        assert spent.keys() == PIECES
        assert all(spent[name] >= 0 for name in PIECES)
        assert spent["head"] > 0
        assert spent["redis"] > 0
        # Each is rounded to a microsecond.
        assert sum(spent.values()) - spent["total"] <= spent["total"] + 0.01
        if answer.headers["content-type"] == "application/json":
            assert answer.json()["took_ms"] <= spent["total"]


def test_a_request_has_a_line_with_its_ids(talking: tuple[httpx.Client, Log]) -> None:
    """Method, template of the path, status, milliseconds, request and trace."""
    client, log = talking
    rank(client, "u", "v", **{"x-request-id": "line-1", "traceparent": PARENT})
    client.get("/users/somebody-7?x=secret", headers={"x-request-id": "line-2"})
    client.get("/no/such/place", headers={"x-request-id": "line-3"})

    line = log.of("line-1")
    assert line["trace_id"] == TRACE
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert (line["method"], line["path"], line["status"]) == ("POST", "/score", 200)
    assert line["ms"] > 0
    assert log.of("line-2")["path"] == "/users/{user_id:id}"
    assert (log.of("line-3")["path"], log.of("line-3")["status"]) == ("unmatched", 404)


def test_every_line_is_json_the_servers_own_too(talking: tuple[httpx.Client, Log]) -> None:
    """Lines of uvicorn go through the same formatter; all have time, level, logger and event."""
    _, log = talking

    assert log.lines(logger="uvicorn.error", event="Application startup complete.")
    for line in log.lines():
        assert {"time", "level", "logger", "process", "event"} <= line.keys()


def test_no_line_tells_a_history(talking: tuple[httpx.Client, Log]) -> None:
    """Neither users nor videos nor features, whatever goes right or wrong, at any level."""
    client, log = talking
    features = [0.125, 0.75, 0.625]
    inline = {"video_id": "zzvideo-inline", "category": 2, "features": features}
    put(client, "zzvideo-1", "zzvideo-2")
    assert click(client, "zzuser", "zzvideo-1").is_success
    assert rank(client, "zzuser", "zzvideo-1", "zzvideo-2").is_success
    body = {"user_id": "zzuser", "candidates": [inline]}
    assert client.post("/score", json=body).is_success
    inline["features"] = [*features, 1]
    assert client.post("/score", json=body).status_code == 422
    assert client.post("/score", json={**body, "zzwrong": 1}).status_code == 422
    assert client.post("/events", content=b'{"user_id": "zzuser').status_code == 400
    assert client.post("/events", json={"events": [{"user_id": "zzuser"}]}).status_code == 422
    bad = {"video_id": "zzvideo-3", "category": 1, "features": features[:1]}
    client.put("/videos", json={"videos": [bad]})
    assert client.get("/users/zzuser?as=zzuser").is_success
    assert client.delete("/videos/zzvideo-2").is_success
    last = client.delete("/users/zzuser", headers={"x-request-id": "last-of-all"})
    assert last.is_success
    log.of("last-of-all")

    text = log.path.read_text()
    for told in ("zzuser", "zzvideo", "zzwrong", "0.125", "0.625"):
        assert told not in text


async def test_an_error_of_ours_is_told_without_what_it_stumbled_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """500: the log has the kinds of the errors and the places in the code, and the request's id."""
    seen: dict[str, str] = {}

    async def stumble(*_: object) -> None:
        try:
            seen["zzvideo-9"]
        except KeyError as exc:
            raise ValueError("no zzuser") from exc

    before = logging.getLogger().handlers[:]
    configure_logs()
    try:
        log = AccessLog("notable", 100.0)
        edge = Edge(stumble, max_body_bytes=10, access_log=log, drain=Drain(0))
        transport = httpx.ASGITransport(edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.get("/", headers={"x-request-id": "odd"})
        logging.getLogger("service").error("x", exc_info=ValueError("a path"))
    finally:
        logging.getLogger().handlers[:] = before
        logging.captureWarnings(capture=False)
        sys.excepthook = sys.__excepthook__
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    failed, line, other = (each for each in lines if each["logger"].startswith("service"))

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "odd"
    assert (failed["request_id"], line["request_id"], line["status"]) == ("odd", "odd", 500)
    assert "builtins.KeyError" in failed["exception"]
    assert "in stumble" in failed["exception"]
    assert "zz" not in failed["exception"].replace('seen["zzvideo-9"]', "").replace(
        '"no zzuser"', ""
    )
    assert "a path" in other["exception"]


def test_by_default_only_notable_requests_have_lines(tmp_path: Path, store: ModelStore) -> None:
    """What failed has one, as a warning; what went well has none, however many there are."""
    flags = ("--redis-url", "redis://127.0.0.1:1", "--slow-ms", "100000")
    with serving(store, tmp_path, *flags) as client:
        assert rank(client, "u", "v").is_success
        assert client.get("/nowhere").status_code == 404
        assert click(client, "u", "v").status_code == 503
    [line] = Log(tmp_path / "service.log").lines(logger="service.access")

    assert (line["path"], line["status"], line["level"]) == ("/events", 503, "warning")


def test_a_slow_request_has_a_line(tmp_path: Path, store: ModelStore) -> None:
    """Longer than --slow-ms is notable; --access-log off writes none."""
    with serving(store, tmp_path, "--slow-ms", "0") as client:
        client.get("/health/live", headers={"x-request-id": "slow"})
    assert Log(tmp_path / "service.log").of("slow")["status"] == 200
    with serving(store, tmp_path, "--slow-ms", "0", "--access-log", "off") as client:
        client.get("/health/live", headers={"x-request-id": "slow"})
    assert not Log(tmp_path / "service.log").lines(logger="service.access")


@pytest.mark.parametrize(
    ("flags", "terminal", "is_json"),
    [((), True, False), ((), False, True), (("json",), True, True), (("text",), False, False)],
)
def test_a_person_gets_text_a_machine_json(
    tmp_path: Path, flags: tuple[str, ...], terminal: bool, is_json: bool
) -> None:
    """Text on a terminal, JSON elsewhere, unless --log-format says which."""
    command = [sys.executable, "-m", "service", "--model-store", str(tmp_path)]
    command += ["--log-format", *flags] if flags else []
    ours, theirs = pty.openpty() if terminal else os.pipe()
    try:
        subprocess.run(command, cwd=ROOT, stderr=theirs, check=False)
        line = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert "no version is promoted" in line
    assert line.startswith("{") == is_json
    assert bool(re.match(r"\d\d:\d\d:\d\d\.\d{3} ERROR ", line)) != is_json


@pytest.mark.parametrize("length", ["0 ", "000", "0\t"])
@pytest.mark.parametrize("path", ["/score", "/events"])
def test_a_length_is_read_as_the_parser_reads_it(
    client: httpx.Client, path: str, length: str
) -> None:
    """With blanks behind it and zeros before it: the request is answered, here as what it lacks."""
    host = client.base_url.host, client.base_url.port or 80
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(host, timeout=10) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 400 ")
