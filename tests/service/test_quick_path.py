"""Over HTTP, a ranking without a task differs from any other in nothing that a caller could see."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest
from redis import Redis

from model_store import Click, ModelStore
from service.app import create_app
from service.connections import LingeringProtocol
from service.edge import Edge
from service.settings import Settings
from service.state import NewClick, State

from .listening import answers, request, serving_app

START = 1_700_000_000_000
VIDEOS = [f"path-{i}" for i in range(40)]
BODY = {"user_id": "path", "candidates": [{"video_id": v} for v in VIDEOS]}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MSGPACK = {"content-type": "application/msgpack"}


class Watched:
    """A service in this process, and how often a ranking took a task."""

    def __init__(self, client: httpx.Client, tasks: list[str]) -> None:
        self.client = client
        self.tasks = tasks

    def ask(self, body: Any = BODY, *, by_task: bool, **headers: str) -> httpx.Response:
        """Ask; of a length that is not known it takes a task."""
        before = len(self.tasks)
        sent = json.dumps(body).encode()
        content = iter([sent]) if by_task else sent
        answer = self.client.post("/score", content=content, headers=headers)
        assert len(self.tasks) - before == by_task
        return answer

    def metric(self, line: str) -> float:
        found = [x for x in self.client.get("/metrics").text.splitlines() if x.startswith(line)]
        return sum(float(x.rpartition(" ")[2]) for x in found)


@pytest.fixture(scope="module")
def watched(
    store: ModelStore, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """One whose user has clicked, and was asked for before."""
    tasks: list[str] = []

    class Counting(Edge):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") == "/score":
                tasks.append(scope["path"])
            await super().__call__(scope, receive, send)

    settings = Settings(
        model_store=store.root,
        redis_url=redis_url,
        data_dir=tmp_path_factory.mktemp("watched"),
        redis_timeout_seconds=5,
        # Rows of videos that were just registered are dropped when the log of changes is read.
        change_poll_seconds=3_600,
        drain_notice_seconds=0,
        score_timeout_ms=20_000,
        access_log="all",
        # However slow the first runs are, which is what the others are judged by.
        inline_microseconds=10**7,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.Edge", Counting)
        app = create_app(settings)
    with (
        serving_app(app, http=LingeringProtocol, lifespan="on") as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        films = [
            {"video_id": v, "category": i % 4, "features": [i, 1, -i]} for i, v in enumerate(VIDEOS)
        ]
        client.put("/videos", json={"videos": films}).raise_for_status()
        event = {"user_id": "path", "video_id": VIDEOS[3], "timestamp": START}
        client.post("/events", json={"events": [event]}).raise_for_status()
        client.post("/score", json=BODY).raise_for_status()
        yield Watched(client, tasks)


def shape(headers: httpx.Headers) -> dict[str, str]:
    """Headers whose numbers are times, or ids drawn for each request, with those left out."""
    changing = r"[0-9a-f]{16}-01$|[0-9.]+(?=,|$)"
    return {k: re.sub(changing, "", v) for k, v in headers.items() if k != "date"}


def test_the_answer_is_the_same(watched: Watched) -> None:
    """Every header in the same order, every member of the body, every score."""
    asked = {"x-request-id": "same", "traceparent": TRACE}
    quick = watched.ask(by_task=False, **asked)
    usual = watched.ask(by_task=True, **asked)

    assert quick.status_code == usual.status_code == 200
    assert quick.headers["x-request-id"] == "same"
    assert quick.headers["traceparent"].startswith(TRACE[:36])
    names = [name.partition(";")[0] for name in quick.headers["server-timing"].split(", ")]
    assert {"redis", "profile", "queue", "rows", "head", "total"} == set(names)
    assert list(quick.headers) == list(usual.headers)
    leave = ("content-length", "server-timing")
    shapes = [{k: v for k, v in shape(a.headers).items() if k not in leave} for a in (quick, usual)]
    assert shapes[0] == shapes[1]
    bodies = [{**a.json(), "took_ms": 0} for a in (quick, usual)]
    assert bodies[0] == bodies[1]
    assert 0 < quick.json()["took_ms"] < 20_000


def test_it_is_timed_from_its_first_byte(watched: Watched) -> None:
    """Its body is waited for, and that is a part of what the caller waits."""
    sent = request("/score", body=json.dumps(BODY).encode())
    with socket.create_connection(("127.0.0.1", watched.client.base_url.port)) as connection:
        connection.sendall(sent[:-10])
        time.sleep(0.2)
        connection.sendall(sent[-10:])
        [answer] = answers(connection, 1, ends=(b"]}",))
    total = re.search(rb"total;dur=([0-9.]+)", answer)
    assert total is not None
    assert float(total[1]) > 190


def test_so_is_messagepack(watched: Watched) -> None:
    """Columns and all."""
    packed = msgpack.packb({"user_id": "path", "video_ids": VIDEOS, "top_k": 5})
    before = len(watched.tasks)
    quick = watched.client.post("/score", content=packed, headers=MSGPACK).raise_for_status()
    assert len(watched.tasks) == before
    usual = watched.client.post("/score", content=iter([packed]), headers=MSGPACK)
    bodies = [msgpack.unpackb(answer.content) for answer in (quick, usual)]
    for body in bodies:
        body.update(took_ms=0, request_id="")
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**BODY, "top_k": 0}, 422),
        ({**BODY, "candidates": []}, 422),
        ({**BODY, "user_id": "a\x7fb"}, 422),
        ({**BODY, "min_history_version": 2**63 - 1}, 409),
        ({**BODY, "candidates": [{"video_id": "path-nowhere"}]}, 200),
        ({**BODY, "user_id": "path-nobody"}, 200),
        ([], 422),
    ],
)
def test_whatever_is_unusual_takes_a_task(watched: Watched, body: Any, status: int) -> None:
    """And has the answer that it always had."""
    before = len(watched.tasks)
    answer = watched.client.post("/score", json=body)
    usual = watched.ask(body, by_task=True)

    assert len(watched.tasks) == before + 2
    assert answer.status_code == usual.status_code == status
    leave = ("request_id", "took_ms")
    found = [{k: v for k, v in a.json().items() if k not in leave} for a in (answer, usual)]
    assert found[0] == found[1]


def test_everything_is_counted_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever way it took."""
    lines = {
        'ctr_requests_total{route="/score",status="200"': 1,
        'ctr_request_seconds_count{route="/score"': 1,
        "ctr_candidates_total": len(VIDEOS),
        'ctr_row_cache_total{outcome="hit"': len(VIDEOS),
        'ctr_guesses_total{outcome="right"': 1,
        'ctr_profile_cache_total{outcome="hit"': 1,
        "ctr_score_count": 1,
        "ctr_jobs_per_run_count": 1,
        'ctr_stage_seconds_count{stage="model"': 1,
        'ctr_stage_seconds_count{stage="state"': 1,
        'ctr_stage_seconds_count{stage="user"': 1,
    }
    for by_task in (False, True):
        before = {line: watched.metric(line) for line in lines}
        caplog.clear()
        with caplog.at_level("INFO"):
            watched.ask(by_task=by_task)
        # Before the metrics are asked for, which may be told of, too.
        said = [r for r in caplog.records if r.name == "service.access"]
        assert len(said) == 1
        assert {line: watched.metric(line) - before[line] for line in lines} == lines
        assert watched.metric("ctr_candidates_in_flight") == 0


def test_a_deadline_is_the_callers_whichever_way_it_passes(
    watched: Watched, redis_url: str
) -> None:
    """504 with the same words, counted once, and about when it was to be."""
    with Redis.from_url(redis_url) as redis:
        for by_task in (False, True):
            watched.ask(by_task=False)
            expired = watched.metric("ctr_expired_total")
            redis.execute_command("CLIENT PAUSE", 200, "ALL")
            begin = time.monotonic()
            answer = watched.ask({**BODY, "timeout_ms": 50}, by_task=by_task)
            took = time.monotonic() - begin
            assert answer.status_code == 504
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"] == "the answer was not ready within 50 ms"
            assert took > 0.045
            redis.ping()
            assert watched.metric("ctr_expired_total") == expired + 1


def test_a_click_by_another_way_is_in_the_next_answer(watched: Watched, redis_url: str) -> None:
    """Begun without a task, made with one, counted once; after that it is as before."""

    async def click(at: int) -> int:
        state = State(redis_url)
        appended = await state.append([NewClick("path", Click(START + at, VIDEOS[at]))])
        await state.close()
        return appended.users["path"].version

    for at in range(10, 13):
        watched.ask(by_task=False)
        version = asyncio.run(click(at))
        before, candidates = len(watched.tasks), watched.metric("ctr_candidates_total")
        wrong = watched.metric('ctr_guesses_total{outcome="wrong"')
        answer = watched.client.post("/score", json=BODY).raise_for_status().json()
        assert answer["history"]["version"] == version
        assert len(watched.tasks) == before + 1
        assert watched.metric("ctr_candidates_total") == candidates + len(VIDEOS)
        assert watched.metric('ctr_guesses_total{outcome="wrong"') == wrong + 1
        again = watched.ask(by_task=False).json()
        assert again["history"]["version"] == version
        assert again["results"] == answer["results"]
