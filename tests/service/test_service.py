"""The service as its clients see it: two real workers, one real Redis."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_store import ModelStore, click_probabilities

from .conftest import ROOT, serving, tiny_draft, wait_for

NOW = int(time.time() * 1e3)


def inline(rng: np.random.Generator, count: int) -> list[dict[str, object]]:
    return [
        {
            "video_id": f"inline-{i}",
            "category": int(rng.integers(6)),
            "features": rng.normal(size=3).astype(np.float32).tolist(),
        }
        for i in range(count)
    ]


def put(client: httpx.Client, videos: list[dict[str, object]]) -> dict[str, object]:
    answer = client.put("/videos", json={"videos": videos})
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client: httpx.Client, events: list[object]) -> dict[str, object]:
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == 200, answer.text
    return answer.json()


def score(client: httpx.Client, user: str, candidates: list, **more: object) -> dict[str, object]:
    answer = client.post("/score", json={"user_id": user, "candidates": candidates, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.timeout(400)
def test_every_score_reflects_the_click_before_it(client: httpx.Client) -> None:
    """On two workers, each acknowledged click is in the next score."""
    put(client, [{"video_id": "seen", "category": 1, "features": [1, 2, 3]}])
    # A connection of its own each time, so that both workers take part.
    for turn in range(1000):
        with httpx.Client(base_url=client.base_url) as fresh:
            event = {"user_id": "reader", "video_id": "seen", "timestamp": NOW - 9999 + turn}
            told = post(fresh, [event])["users"]["reader"]
        with httpx.Client(base_url=client.base_url) as fresh:
            answer = score(fresh, "reader", [{"video_id": "seen"}])
        assert answer["history"]["version"] == told["history_version"]
        assert answer["history"]["length"] == min(160, turn + 1)


@pytest.mark.parametrize("clicks", [0, 1, 40, 41, 160, 170])
def test_online_scores_are_the_models_own(
    client: httpx.Client, store: ModelStore, clicks: int
) -> None:
    """Inline candidates score as the model does when asked directly, within 1e-5."""
    rng = np.random.default_rng(clicks)
    # Halves are exact in float16.
    history = [
        {
            "video_id": f"h{clicks}-{i}",
            "category": i % 5,
            "features": (np.round(row * 2) / 2).tolist(),
        }
        for i, row in enumerate(rng.normal(size=(clicks, 3)))
    ]
    user = f"offline-{clicks}"
    put(client, history)
    events = [
        {"user_id": user, "video_id": v["video_id"], "timestamp": NOW - 10**6 + i}
        for i, v in enumerate(history)
    ]
    post(client, [events[i] for i in rng.permutation(clicks)])
    candidates = inline(rng, 50)

    answer = score(client, user, candidates)

    model = store.open().model

    def rows(videos: list) -> np.ndarray:
        features = np.array([v["features"] for v in videos], np.float32).reshape(-1, 3)
        categories = np.array([min(v["category"], 4) for v in videos], np.int64)
        return model.encode_videos(features, categories)

    expected = click_probabilities(
        model.logits(model.profile(rows(history[-160:])), rows(candidates))
    )
    scores = np.zeros(50)
    for row in answer["results"]:
        scores[row["index"]] = row["score"]
    assert np.abs(scores - expected).max() < 1e-5
    assert [r["rank"] for r in answer["results"]] == list(range(1, 51))
    assert [r["index"] for r in answer["results"]] == np.argsort(-scores, kind="stable").tolist()


def test_each_event_gets_its_verdict(client: httpx.Client) -> None:
    """One bad event does not spoil its neighbours, and each verdict names its reason."""
    user = {"user_id": "verdicts", "video_id": "seen"}
    results = post(
        client,
        [
            {**user, "timestamp": NOW - 1000, "event_id": "e1"},
            {**user, "timestamp": NOW - 2000},
            {**user, "timestamp": NOW - 1000},
            {**user, "timestamp": NOW - 500, "event_id": "e1"},
            {**user, "timestamp": NOW + 10**6},
            {**user, "timestamp": 1_700_000_000},
            {**user, "timestamp": "yesterday"},
            {**user, "user_id": ""},
            {**user, "video_id": "a\u0000b", "timestamp": NOW},
            17,
            {**user, "timestamp": "2024-05-01T12:00:00.25+02:00", "video_id": "nobody's"},
        ],
    )["results"]

    assert [r["status"] for r in results] == [
        "accepted", "late", "duplicate", "duplicate", "future", *["invalid"] * 5, "late",
    ]  # fmt: skip
    assert all(r["reason"] for r in results[4:10])
    assert results[-1]["video_known"] is False


def test_a_click_below_the_oldest_kept_is_too_old(client: httpx.Client) -> None:
    """With 160 newer clicks, an older one changes nothing."""
    clicks = [{"user_id": "full", "video_id": "seen", "timestamp": NOW - i} for i in range(160)]
    before = post(client, clicks)["users"]
    after = post(client, [{"user_id": "full", "video_id": "seen", "timestamp": NOW - 9999}])

    assert after["results"][0]["status"] == "too_old"
    assert after["users"] == before


def test_registering_videos_is_idempotent_and_faults_are_per_item(client: httpx.Client) -> None:
    """Good videos are stored beside bad ones, and a repeat writes nothing."""
    good = {"video_id": "put/1", "category": 2, "features": [0.5, 1.5, -2]}
    videos = [good, {**good, "features": [1]}, {**good, "features": [1e9, 0, 0]}, {}]
    first = put(client, videos)

    assert first["accepted"] == 1
    assert [fault["index"] for fault in first["faults"]] == [1, 2, 3]
    assert put(client, [good]) == {"accepted": 1, "unchanged": 1, "faults": []}
    assert client.get("/videos/put/1").json() == good


def test_not_a_number_is_a_fault_of_its_video(client: httpx.Client) -> None:
    """NaN in a video is a problem that names the video."""
    body = b'{"videos":[{"video_id":"nan","category":1,"features":[NaN,1,2]}]}'
    answer = client.put("/videos", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/videos/0"


def test_unknown_videos_stand_at_the_end(client: httpx.Client) -> None:
    """An unknown candidate has no score and a reason; the others are ranked, cut by top_k."""
    rng = np.random.default_rng(1)
    candidates = [{"video_id": "never-seen"}, *inline(rng, 3)]
    rows = score(client, "nobody", candidates, top_k=2)["results"]

    assert [r["rank"] for r in rows] == [1, 2, None]
    assert rows[-1] == {
        "video_id": "never-seen", "index": 0, "rank": None, "score": None,
        "reason": "unknown_video",
    }  # fmt: skip


def test_a_changed_video_changes_its_score_on_both_workers(client: httpx.Client) -> None:
    """A second after it is acknowledged, a PUT /videos is in every score of every worker."""
    for value in range(3):
        put(client, [{"video_id": "moving", "category": 0, "features": [value / 8, 0, 0]}])
        time.sleep(1)
        for _ in range(8):
            with httpx.Client(base_url=client.base_url) as fresh:
                [row] = score(fresh, "nobody", [{"video_id": "moving"}])["results"]
            assert row["score"] == pytest.approx(1 / (1 + np.exp(-0.1 * value / 8)), abs=1e-6)


def test_a_changed_video_changes_the_profiles_of_who_clicked_it(client: httpx.Client) -> None:
    """A stored profile does not answer once the features behind it have changed."""
    candidates = inline(np.random.default_rng(12), 2)
    answers = []
    for value in (1, 2):
        put(client, [{"video_id": "restyled", "category": 0, "features": [value, 0, 0]}])
        post(client, [{"user_id": "fan", "video_id": "restyled", "timestamp": NOW}])
        time.sleep(1)
        answers.append(score(client, "fan", candidates))

    assert answers[0]["history"] == answers[1]["history"]
    assert answers[0]["results"] != answers[1]["results"]


def test_a_clicked_video_counts_once_it_is_registered(client: httpx.Client) -> None:
    """A click on an unknown video is kept and seen when the video arrives."""
    candidates = inline(np.random.default_rng(2), 1)
    post(client, [{"user_id": "early", "video_id": "later", "timestamp": NOW}])
    before = score(client, "early", candidates)
    put(client, [{"video_id": "later", "category": 3, "features": [1, 1, 1]}])
    after = score(client, "early", candidates)

    assert before["history"] == after["history"]
    assert before["results"] != after["results"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", b"", 404),
        ("GET", "/videos/unregistered", b"", 404),
        ("DELETE", "/score", b"", 405),
        ("POST", "/score", b"{", 400),
        ("POST", "/score", b"[]", 422),
        ("POST", "/score", b'{"user_id": 1, "candidates": []}', 422),
        ("POST", "/score", b'{"user_id":"u","candidates":[{"video_id":"v","category":1}]}', 422),
        (
            "POST",
            "/score",
            b'{"user_id":"u","candidates":[{"video_id":"v","category":1,"features":[1]}]}',
            422,
        ),
        ("POST", "/events", b'{"events":[' + b"1," * 10_000 + b"1]}", 413),
        ("PUT", "/videos", b" " * (64 * 2**20 + 1), 413),
    ],
)
def test_every_error_is_a_problem(
    client: httpx.Client, method: str, path: str, body: bytes, status: int
) -> None:
    """Errors have one form, and carry the caller's request id."""
    headers = {"content-type": "application/json", "x-request-id": "mine-7"}
    answer = client.request(method, path, content=body, headers=headers)

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine-7"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= problem.keys()
    assert problem["status"] == status
    assert problem["request_id"] == "mine-7"


def test_no_number_is_too_large(client: httpx.Client) -> None:
    """Whole numbers have no end in JSON: a wish beyond every limit is one without a limit."""
    body = b'{"user_id":"u","candidates":[{"video_id":"v"}],"%s":1' + b"0" * 400 + b"}"

    assert client.post("/score", content=body % b"timeout_ms").status_code == 200
    assert client.post("/score", content=body % b"top_k").status_code == 200
    assert client.post("/score", content=body % b"min_history_version").status_code == 409


@pytest.mark.parametrize("line", [b"POST /events", b"POST /score", b"PUT /videos"])
def test_a_body_that_is_cut_short_is_nobodys_fault(
    tmp_path: Path, store: ModelStore, line: bytes
) -> None:
    """Nothing of it is taken, and it counts as a caller who went away, not as an error."""
    event = {"user_id": "cut", "video_id": "v", "timestamp": NOW}
    body = json.dumps(event).encode() + b"\n"
    head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    kind = b"application/x-ndjson" if b"events" in line else b"application/json"
    with serving(store, tmp_path) as running:
        address = ("127.0.0.1", running.base_url.port or 0)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(head % (kind, 2 * len(body)) + body)
        counted = f'ctr_requests_total{{route="{line.split()[1].decode()}",status='
        wait_for(lambda: counted in running.get("/metrics").text)
        found = [x for x in running.get("/metrics").text.splitlines() if x.startswith(counted)]
        history = running.get("/users/cut").json()["history"]

    assert found == [f'{counted}"None"}} 1.0']
    assert history["length"] == 0
    assert "Traceback" not in (tmp_path / "service.log").read_text()


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    """A chunked body above the limit is 413."""
    chunks = (b" " * 2**20 for _ in range(65))
    answer = client.put("/videos", content=chunks, headers={"content-type": "application/json"})

    assert answer.status_code == 413


def test_metrics_of_all_workers_are_shown(client: httpx.Client) -> None:
    """/metrics has the families that dashboards read; /docs and /models answer."""
    score(client, "nobody", inline(np.random.default_rng(4), 2))
    text = client.get("/metrics").text

    for family in (
        'ctr_requests_total{route="/score",status="200"}', "ctr_stage_seconds_bucket",
        "ctr_candidates_total", "ctr_profile_cache_total", "ctr_model_info{",
    ):  # fmt: skip
        assert family in text
    assert client.get("/docs").is_success
    assert client.get("/models").json()["serving"]
    assert client.get("/health/ready").json()["status"] == "ready"


def test_the_service_refuses_to_start_without_a_version(tmp_path: Path) -> None:
    """No usable version: a reason and a failing exit status."""
    command = [sys.executable, "-m", "service", "--model-store", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "no version is promoted" in done.stderr


def test_a_waiting_service_takes_up_promoted_versions(tmp_path: Path, redis_url: str) -> None:
    """--wait-for-model is not ready until a version is promoted, and follows the next one."""
    store = ModelStore(tmp_path / "store")
    flags = ("--wait-for-model", "--redis-url", redis_url)
    with serving(store, tmp_path, *flags) as client:
        assert client.get("/health/ready").status_code == 503
        for weight in (0.1, 0.3):
            version = store.publish(tiny_draft(weight))
            store.promote(version)
            wait_for(lambda v=version: client.get("/models").json()["serving"] == v)
            assert client.get("/health/ready").json()["version"] == version


def test_redis_down_is_503_and_the_service_stays_alive(tmp_path: Path, store: ModelStore) -> None:
    """Without Redis nothing is acknowledged, and liveness does not care."""
    with serving(store, tmp_path, "--redis-url", "redis://127.0.0.1:1/0") as client:
        body = {"events": [{"user_id": "u", "video_id": "v", "timestamp": NOW}]}
        answer = client.post("/events", json=body)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200


def test_history_survives_a_restart(tmp_path: Path, store: ModelStore) -> None:
    """The embedded Redis keeps what was acknowledged."""
    with serving(store, tmp_path) as client:
        told = post(client, [{"user_id": "u", "video_id": "v", "timestamp": NOW}])["users"]["u"]
    with serving(store, tmp_path) as client:
        history = score(client, "u", [{"video_id": "v"}])["history"]

    assert history == {"length": 1, "version": told["history_version"]}


def test_a_busy_service_stops_when_told(tmp_path: Path, store: ModelStore) -> None:
    """SIGTERM ends the service with status 0 while profiles are computed in the background."""
    with serving(store, tmp_path) as client:
        put(client, [{"video_id": "seen", "category": 1, "features": [1, 2, 3]}])
        event = {"video_id": "seen", "timestamp": NOW}
        post(client, [{**event, "user_id": f"busy-{i}"} for i in range(2000)])
