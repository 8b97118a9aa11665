"""What makes scores fast changes no score: guesses, warm rows, MessagePack, refusals."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest
from redis import Redis

from model_store import ModelStore
from service.embedded_redis import embedded_redis

from .conftest import serving, tiny_draft, wait_for

START = 1_720_000_000_000
MSGPACK = {"content-type": "application/msgpack"}


@pytest.fixture(scope="module")
def videos(client: httpx.Client) -> list[str]:
    rng = np.random.default_rng(1)
    names = [f"hot{i}" for i in range(400)]
    body = [
        {"video_id": name, "category": i % 4, "features": rng.normal(size=3).round(2).tolist()}
        for i, name in enumerate(names)
    ]
    assert client.put("/videos", json={"videos": body}).is_success
    return names


def click(client: httpx.Client, user: str, video: str, at: int) -> int:
    event = {"user_id": user, "video_id": video, "timestamp": START + at}
    answer = client.post("/events", json={"events": [event]}).raise_for_status().json()
    return int(answer["users"][user]["history_version"])


def metric(client: httpx.Client, line: str) -> float:
    found = [x for x in client.get("/metrics").text.splitlines() if x.startswith(line)]
    return sum(float(x.rpartition(" ")[2]) for x in found)


def test_a_guess_never_outlives_a_click(client: httpx.Client, videos: list[str]) -> None:
    """Each worker remembers profiles; after a click on either every score is of the new history."""
    body = {"user_id": "guessed", "candidates": [{"video_id": v} for v in videos[:9]]}
    for round_ in range(60):
        version = click(client, "guessed", videos[round_], round_)
        for _ in range(3):
            with httpx.Client(base_url=client.base_url) as fresh:
                answer = fresh.post("/score", json=body).raise_for_status().json()
            assert answer["history"]["version"] == version
            alone = {**body, "candidates": body["candidates"][:1]}
            again = client.post("/score", json=alone).raise_for_status().json()
            scores = {row["video_id"]: row["score"] for row in answer["results"]}
            assert again["results"][0]["score"] == scores[videos[0]]

    assert metric(client, 'ctr_guesses_total{outcome="right"}') > 0


def test_messagepack_answers_what_json_answers(client: httpx.Client, videos: list[str]) -> None:
    """The same order, the same scores to the bit, the same rows without one."""
    click(client, "packed", videos[3], 0)
    asked = [*videos[:300], "nowhere"]
    plain = {"user_id": "packed", "candidates": [{"video_id": v} for v in asked], "top_k": 50}
    json_answer = client.post("/score", json=plain).raise_for_status().json()
    packed = msgpack.packb({"user_id": "packed", "video_ids": asked, "top_k": 50})
    response = client.post("/score", content=packed, headers=MSGPACK).raise_for_status()
    answer = msgpack.unpackb(response.content)

    assert response.headers["content-type"] == "application/msgpack"
    rows = json_answer["results"]
    assert np.frombuffer(answer["index"], "<u4").tolist() == [r["index"] for r in rows[:50]]
    assert np.frombuffer(answer["score"], "<f8").tolist() == [r["score"] for r in rows[:50]]
    assert answer["unranked"] == [[300, "unknown_video"]]
    assert answer["history"] == json_answer["history"]
    assert answer["model"] == json_answer["model"]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"\xc1", 400, "not MessagePack"),
        (msgpack.packb({"user_id": "u", "video_ids": ["a"]})[:-1], 400, "not MessagePack"),
        (msgpack.packb({"user_id": "u"}) + b"\x01", 400, "not MessagePack"),
        (msgpack.packb({"user_id": "u", "video_ids": []}), 422, "video_ids"),
        (msgpack.packb({"user_id": "u", "video_ids": [b"a"]}), 422, "video_ids"),
        (msgpack.packb({"user_id": "u", "video_ids": ["é" * 129]}), 422, "256"),
        (msgpack.packb({"user_id": "u", "video_ids": ["a"], "topk": 1}), 422, "topk"),
        (msgpack.packb(["u"]), 422, "wrong"),
        (msgpack.packb({"user_id": "u", "video_ids": ["a"] * 5_001}), 413, "5001 candidates"),
    ],
)
def test_a_wrong_compact_body_is_a_problem(
    client: httpx.Client, content: bytes, status: int, words: str
) -> None:
    """Named by field and limit, in JSON."""
    response = client.post("/score", content=content, headers=MSGPACK)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert words in json.dumps(response.json())


def test_the_short_way_answers_what_the_framework_does(
    client: httpx.Client, videos: list[str]
) -> None:
    """A trailing query or another method takes the framework's way to the same answer."""
    click(client, "ways", videos[4], 0)
    body = {"user_id": "ways", "candidates": [{"video_id": v} for v in videos[:3]]}
    # From the second on a worker remembers the profile.
    short = [client.post("/score", json=body).json() for _ in range(4)][-1]
    documented = client.get("/openapi.json").json()["paths"]["/score"]["post"]

    assert short["results"] == client.post("/score?x=1", json=body).json()["results"]
    # Of unknown length: not waited for, so not begun before a task is.
    chunked = client.post("/score", content=iter([json.dumps(body).encode()]))
    assert short["results"] == chunked.json()["results"]
    assert set(short) == set(chunked.json())
    assert client.get("/score").status_code == 405
    assert set(documented["requestBody"]["content"]) == {
        "application/json",
        MSGPACK["content-type"],
    }
    assert {"413", "422", "429", "503", "504"} <= set(documented["responses"])


@pytest.fixture(scope="module")
def narrow(
    store: ModelStore, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    """A service with room for 500 candidates, a request counting as 200 of them."""
    with ExitStack() as stack:
        # Only while it starts: other services of this module have room for more.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CTR_MAX_CANDIDATES_IN_FLIGHT", "500")
            patch.setenv("CTR_INLINE_MICROSECONDS", "0")
            running = stack.enter_context(serving(store, tmp_path_factory.mktemp("narrow")))
        yield running


def inline(count: int) -> list[dict[str, object]]:
    return [
        {"video_id": f"i{i}", "category": 1, "features": [0.1, 0.2, i / count]}
        for i in range(count)
    ]


def test_more_than_fits_is_429_and_is_over_when_it_is_over(narrow: httpx.Client) -> None:
    """Refused at once with Retry-After; a single longer request is served when alone."""
    body = json.dumps({"user_id": "many", "candidates": inline(400)}).encode()
    url = f"{narrow.base_url}/score"

    def ask(number: int) -> httpx.Response:
        headers = {"x-request-id": f"many-{number}"}
        return httpx.post(url, content=body, timeout=30, headers=headers)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    counts = Counter(answer.status_code for answer in answers)

    assert set(counts) <= {200, 429}
    assert counts[200] > 0
    assert counts[429] > 0
    refused = 'ctr_requests_total{route="/score",status="429"}'
    assert metric(narrow, refused) == counts[429]
    for number, answer in enumerate(answers):
        assert answer.headers["x-request-id"] == f"many-{number}"
        assert answer.headers["traceparent"]
        if answer.status_code == 429:
            assert answer.json()["request_id"] == f"many-{number}"
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            assert "500" in answer.json()["detail"] or "already" in answer.json()["detail"]
    alone = narrow.post("/score", json={"user_id": "many", "candidates": inline(2_000)})
    assert alone.status_code == 200
    assert metric(narrow, "ctr_candidates_in_flight") == 0


def test_a_plain_request_too_many_is_answered_as_any_other(
    tmp_path: Path, store: ModelStore
) -> None:
    """By a socket of its own, since clients send more than the plainest form."""
    body = json.dumps({"user_id": "u", "candidates": inline(3)}).encode()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nContent-Length: {len(body)}"
    plain = head.encode() + b"\r\n\r\n" + body
    with (
        pytest.MonkeyPatch.context() as patch,
        embedded_redis(tmp_path / "redis") as url,
        Redis.from_url(url) as redis,
        ThreadPoolExecutor() as pool,
    ):
        patch.setenv("CTR_MAX_CANDIDATES_IN_FLIGHT", "204")
        patch.setenv("CTR_REDIS_TIMEOUT_SECONDS", "5")
        with serving(store, tmp_path, "--redis-url", url) as running:
            redis.execute_command("CLIENT PAUSE", 1_500, "ALL")
            stalled = pool.submit(running.post, "/score", content=body)
            wait_for(lambda: metric(running, "ctr_candidates_in_flight") > 0)
            host = running.base_url.host, running.base_url.port or 80
            with socket.create_connection(host, timeout=10) as connection:
                refusals = []
                for _ in range(3):
                    connection.sendall(plain)
                    refusals.append(connection.recv(1 << 16))
                assert stalled.result().status_code == 200
                connection.sendall(plain)
                served = connection.recv(1 << 16)
            counted = metric(running, 'ctr_requests_total{route="/score",status="429"}')

    for answer in refusals:
        head_of, _, rest = answer.partition(b"\r\n\r\n")
        assert head_of.startswith(b"HTTP/1.1 429 ")
        lines = head_of.lower().split(b"\r\n")
        assert {b"x-request-id: mine", b"retry-after: 1"} <= {*lines}
        assert b"content-length: %d" % len(rest) in lines
        assert json.loads(rest)["request_id"] == "mine"
    assert served.startswith(b"HTTP/1.1 200 ")
    assert counted == 3


def test_time_that_is_up_is_504(tmp_path: Path, store: ModelStore) -> None:
    """With Redis stalled the deadline answers: the caller's, or else the service's."""
    with (
        pytest.MonkeyPatch.context() as patch,
        embedded_redis(tmp_path / "redis") as url,
        Redis.from_url(url) as redis,
    ):
        patch.setenv("CTR_SCORE_TIMEOUT_MS", "300")
        patch.setenv("CTR_REDIS_TIMEOUT_SECONDS", "5")
        with serving(store, tmp_path, "--redis-url", url) as running:
            body = {"user_id": "u", "candidates": inline(3)}
            assert running.post("/score", json=body).is_success
            redis.execute_command("CLIENT PAUSE", 1_500, "ALL")
            begin = time.monotonic()
            answer = running.post("/score", json={**body, "timeout_ms": 60})
            soon = time.monotonic() - begin
            later = running.post("/score", json=body)
            time.sleep(1.5)
            healed = running.post("/score", json=body)
            expired = metric(running, "ctr_expired_total")

    assert answer.status_code == later.status_code == 504
    assert "60 ms" in answer.json()["detail"]
    assert "300 ms" in later.json()["detail"]
    assert 0.06 <= soon < 1.2
    assert healed.status_code == 200
    assert expired == 2


def test_who_waits_for_a_turn_in_vain_is_told_so_and_holds_nobody_up(
    tmp_path: Path, store: ModelStore
) -> None:
    """More rankings than are begun at a time, all stalled: 504 for each, and then it goes on."""
    with (
        pytest.MonkeyPatch.context() as patch,
        embedded_redis(tmp_path / "redis") as url,
        Redis.from_url(url) as redis,
    ):
        patch.setenv("CTR_REDIS_TIMEOUT_SECONDS", "5")
        with (
            serving(store, tmp_path, "--redis-url", url) as running,
            ThreadPoolExecutor(60) as pool,
        ):
            body = {"user_id": "u", "candidates": inline(3), "timeout_ms": 400}

            def ask(_: int) -> int:
                return running.post("/score", json=body).status_code

            redis.execute_command("CLIENT PAUSE", 4_000, "ALL")
            stalled = list(pool.map(ask, range(60)))
            # Answered when the pause is over.
            redis.ping()
            healed = list(pool.map(ask, range(5)))
            waiting = metric(running, "ctr_candidates_in_flight")

    assert stalled == [504] * 60
    assert healed == [200] * 5
    assert waiting == 0


def test_rows_are_warm_after_a_restart_and_after_a_promotion(
    tmp_path: Path, redis_url: str
) -> None:
    """What was asked last is encoded before anyone asks, by the version that is to answer."""
    store = ModelStore(tmp_path / "store")
    store.promote(store.publish(tiny_draft()))
    rng = np.random.default_rng(4)
    names = [f"warm{i}" for i in range(50)]
    body = [
        {"video_id": name, "category": 1, "features": rng.normal(size=3).tolist()} for name in names
    ]
    asked = {"user_id": "u", "candidates": [{"video_id": name} for name in names]}
    flags = ("--redis-url", redis_url)
    with serving(store, tmp_path, *flags) as running:
        running.put("/videos", json={"videos": body}).raise_for_status()
    with serving(store, tmp_path, *flags) as running:
        running.post("/score", json=asked).raise_for_status()
        assert metric(running, 'ctr_row_cache_total{outcome="miss"}') == 50
    with serving(store, tmp_path, *flags) as running:
        before = running.post("/score", json=asked).raise_for_status().json()["results"]
        assert metric(running, 'ctr_row_cache_total{outcome="miss"}') == 0
        version = store.publish(tiny_draft(0.3))
        store.promote(version)
        wait_for(lambda: running.get("/models").json()["serving"] == version)
        after = running.post("/score", json=asked).raise_for_status().json()["results"]
        assert metric(running, 'ctr_row_cache_total{outcome="miss"}') == 0

    assert [row["video_id"] for row in before] == [row["video_id"] for row in after]
    assert before[0]["score"] != after[0]["score"]
