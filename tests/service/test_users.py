"""Users over HTTP, wrong input, and what is left without Redis."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_store import ModelStore
from service.embedded_redis import find_server

from .conftest import serving, wait_for
from .test_service import NOW, inline, post, put, score


def events(user: str, number: int) -> list[dict[str, object]]:
    return [
        {"user_id": user, "video_id": f"w{i % 9}", "timestamp": NOW - 1000 * (number - i)}
        for i in range(number)
    ]


@pytest.fixture(scope="module", autouse=True)
def watched(client: httpx.Client) -> None:
    """Nine registered videos."""
    videos = [
        {"video_id": f"w{i}", "category": i % 4, "features": [i / 4, 1, -i / 8]} for i in range(9)
    ]
    put(client, videos)


def test_a_user_is_shown_in_blocks(client: httpx.Client) -> None:
    """GET /users cuts the history as the model does, and says where the profile stands."""
    told = post(client, events("shown", 50))["users"]["shown"]
    score(client, "shown", inline(np.random.default_rng(1), 1))
    user = client.get("/users/shown").json()

    assert user["history"]["version"] == told["history_version"]
    assert [len(block) for block in user["history"]["blocks"]] == [40, 10]
    assert user["history"]["blocks"][1][-1]["timestamp"] == NOW - 1000
    assert user["profile"]["state"] == "fresh"
    assert user["profile"]["history_version"] == told["history_version"]
    post(client, [{"user_id": "shown", "video_id": "w1", "timestamp": NOW}])
    assert client.get("/users/nobody-at-all").json()["profile"] == {"state": "missing"}


def test_a_deleted_user_is_as_new_and_stays_so(client: httpx.Client) -> None:
    """After DELETE the score is a stranger's, late retries are refused, later clicks are not."""
    candidates = inline(np.random.default_rng(2), 3)
    old = events("gone", 30)
    before = post(client, old)["users"]["gone"]["history_version"]
    stranger = score(client, "never-was", candidates)["results"]
    assert score(client, "gone", candidates)["results"] != stranger
    deleted = client.delete("/users/gone").json()

    assert deleted["existed"]
    assert deleted["history_version"] > before
    assert score(client, "gone", candidates)["results"] == stranger
    answer = post(client, old)
    assert {r["status"] for r in answer["results"]} == {"deleted"}
    assert answer["users"]["gone"]["history_length"] == 0
    wait_for(lambda: time.time() * 1e3 > deleted["refused_until"] + 5)
    fresh = {"user_id": "gone", "video_id": "w1", "timestamp": int(time.time() * 1e3)}
    assert post(client, [fresh])["results"][0]["status"] == "accepted"
    assert not client.delete("/users/never-seen-here").json()["existed"]


def test_a_history_that_is_behind_is_409(client: httpx.Client) -> None:
    """min_history_version: answered where Redis is as far, 409 with the version where not."""
    version = post(client, events("token", 2))["users"]["token"]["history_version"]
    body = {"user_id": "token", "candidates": inline(np.random.default_rng(3), 1)}
    good = client.post("/score", json={**body, "min_history_version": version})
    behind = client.post("/score", json={**body, "min_history_version": version + 1})

    assert good.json()["history"]["version"] == version
    assert behind.status_code == 409
    assert behind.json()["history_version"] == version
    assert behind.json()["type"] == "urn:ctr:problem:history-behind"


def test_lines_are_taken_and_a_broken_one_spoils_the_call(client: httpx.Client) -> None:
    """NDJSON: an event a line; with a line that is not JSON nothing is taken."""
    headers = {"content-type": "application/x-ndjson"}
    lines = "\n".join(json.dumps(event) for event in events("lines", 5))
    answer = client.post("/events", content=lines + "\n\n", headers=headers)
    assert len(answer.json()["results"]) == 5
    version = answer.json()["users"]["lines"]["history_version"]
    more = json.dumps({"user_id": "lines", "video_id": "w3", "timestamp": NOW})
    broken = client.post("/events", content=f"{more}\n{{oops\n", headers=headers)

    assert broken.status_code == 400
    assert "line 2" in broken.json()["detail"]
    assert client.get("/users/lines").json()["history"]["version"] == version
    other = client.post("/events", content=lines, headers={"content-type": "text/csv"})
    assert other.status_code == 415


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_id": "x" * 257}, "user_id: an id has 1 to 256 bytes, this one has 257"),
        ({"user_id": "é" * 129}, "258"),
        ({"user_id": ""}, "user_id"),
        ({"video_id": "a\u0007b"}, "video_id: an id has no control characters"),
        ({"event_id": "a\nb"}, "event_id: an id has no control characters"),
        ({"timestamp": 946_684_799_999}, "timestamp 946684799999 is before 2000"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": "yesterday"}, "RFC 3339"),
        ({"timestamp": True}, "timestamp"),
    ],
)
def test_a_wrong_event_names_field_and_limit(
    client: httpx.Client, change: dict[str, object], words: str
) -> None:
    """Refused with a problem, and nothing changed; beside a good one it gets a verdict."""
    event = {"user_id": "picky", "video_id": "w1", "timestamp": NOW, **change}
    answer = client.post("/events", json={"events": [event]})

    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert fault["pointer"] == "/events/0"
    assert words in fault["detail"]
    both = post(client, [event, {"user_id": "beside", "video_id": "w1", "timestamp": NOW}])
    assert both["results"][0]["status"] == "invalid"
    assert both["results"][1]["status"] in ("accepted", "duplicate")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("kind", ["users", "videos"])
@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("a%0Ab", "an id has no control characters"),
        ("%00", "an id has no control characters"),
        ("x" * 257, "an id has 1 to 256 bytes, this one has 257"),
    ],
)
def test_a_wrong_id_in_a_path_names_field_and_limit(
    client: httpx.Client, method: str, kind: str, identifier: str, words: str
) -> None:
    """As in a body."""
    answer = client.request(method, f"/{kind}/{identifier}")

    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert fault == {"pointer": f"/{kind[:-1]}_id", "detail": words}


def test_a_future_time_is_refused_by_its_limit(client: httpx.Client) -> None:
    """The verdict names field, value and limit; within the tolerance it is a click like others."""
    soon, late = (
        {"video_id": "w1", "timestamp": int(time.time() * 1e3) + ms} for ms in (30_000, 90_000)
    )
    answer = post(client, [{"user_id": "ahead", **event} for event in (soon, late)])
    near, far = answer["results"]

    assert near["status"] == "accepted"
    assert far["status"] == "future"
    assert far["reason"].startswith("timestamp: ")
    assert far["reason"].endswith(" s ahead of this clock, 60 s are tolerated")
    assert answer["users"]["ahead"]["history_length"] == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_no_number_is_no_time_and_no_feature(client: httpx.Client, number: str) -> None:
    """What is not finite is refused, as a time and as a feature."""
    headers = {"content-type": "application/json"}
    event = f'{{"events":[{{"user_id":"u","video_id":"v","timestamp":{number}}}]}}'
    video = f'{{"videos":[{{"video_id":"odd","category":1,"features":[1,{number},2]}}]}}'
    put_ = client.put("/videos", content=video, headers=headers)

    assert client.post("/events", content=event, headers=headers).status_code == 422
    assert put_.status_code == 422
    assert "features" in put_.json()["errors"][0]["detail"]
    assert client.get("/videos/odd").status_code == 404


def test_10001_events_are_too_many(client: httpx.Client) -> None:
    """The limit is named, and nothing of the call is taken."""
    many = [{"user_id": "many", "video_id": "w1", "timestamp": NOW - i} for i in range(10_001)]
    answer = client.post("/events", json={"events": many})

    assert answer.status_code == 413
    assert "10000 are allowed" in answer.json()["detail"]
    lines = "\n".join(map(json.dumps, many))
    headers = {"content-type": "application/x-ndjson"}
    by_line = client.post("/events", content=lines, headers=headers)
    assert by_line.status_code == 413
    assert "more than 10000 events" in by_line.json()["detail"]
    assert client.get("/users/many").json()["history"]["length"] == 0


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def films(count: int, width: int = 3) -> dict[str, np.ndarray]:
    return {
        "video_id": np.array([f"film-{i}" for i in range(count)]),
        "category": np.arange(count) % 4,
        "features": np.arange(count * width).reshape(count, width).astype(np.float16) / 64,
    }


def put_npz(client: httpx.Client, body: bytes) -> httpx.Response:
    return client.put("/videos", content=body, headers={"content-type": "application/x-npz"})


def test_videos_in_binary_are_the_same_videos(client: httpx.Client) -> None:
    """Npz and Arrow register what JSON does, with the same faults by row."""
    good = films(300)
    assert put_npz(client, npz(**good)).json() == {"accepted": 300, "unchanged": 0, "faults": []}
    one = client.get("/videos/film-7").json()
    assert one["features"] == (np.arange(21, 24) / 64).tolist()
    assert put(client, [one])["unchanged"] == 1
    arrow = pytest.importorskip("pyarrow")
    features = arrow.FixedSizeListArray.from_arrays(good["features"].reshape(-1), 3)
    table = arrow.table(
        {"video_id": good["video_id"], "category": good["category"], "features": features}
    )
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = client.put("/videos", content=sink.getvalue().to_pybytes(), headers=headers)
    assert answer.json() == {"accepted": 300, "unchanged": 300, "faults": []}
    bad = films(4)
    bad["features"][1, 0] = np.nan
    bad["video_id"] = bad["video_id"].astype("<U300")
    bad["video_id"][2] = "x" * 257
    faults = put_npz(client, npz(**bad)).json()["faults"]
    assert [fault["index"] for fault in faults] == [1, 2]
    assert "NaN" in faults[0]["reason"]
    assert "256" in faults[1]["reason"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no zip at all", "no npz"),
        (npz(video_id=np.array(["a"])), "category is missing"),
        (npz(**{**films(2), "category": np.zeros(3, int)}), "differ in length"),
        (npz(**{**films(2), "features": np.zeros((2, 3), int)}), "features"),
        (npz(**films(2, width=5)), "5 given, the model takes 3"),
        (npz(**films(2))[:-200], "no npz"),
    ],
)
def test_a_wrong_npz_is_a_problem(client: httpx.Client, body: bytes, words: str) -> None:
    """What is wrong is named, and nothing is stored."""
    answer = put_npz(client, body)

    assert answer.status_code == 422
    assert words in answer.text


def test_pickles_and_bombs_are_refused(client: httpx.Client) -> None:
    """No object arrays, and no small body that expands beyond the limit."""
    odd = npz(**{**films(2), "video_id": np.array([{"a": 1}, "b"], dtype=object)})
    assert put_npz(client, odd).status_code == 422
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", bytes(300 * 2**20))
    answer = put_npz(client, stream.getvalue())
    assert answer.status_code == 422
    assert "allowed" in answer.text


def test_a_burst_computes_a_profile_once(client: httpx.Client) -> None:
    """Forty requests at once on two workers: one computation, by whoever was first."""

    def computed() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'ctr_stage_seconds_count{stage="profile"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    base = str(client.base_url)
    candidates = inline(np.random.default_rng(5), 2)
    runs = []
    for attempt in range(3):
        user = f"burst-{attempt}"
        before = computed()
        post(client, events(user, 40))
        with ThreadPoolExecutor(20) as pool:

            def ask(_: int, user: str = user) -> list[object]:
                with httpx.Client(base_url=base, timeout=20) as fresh:
                    return score(fresh, user, candidates)["results"]

            answers = list(pool.map(ask, range(40)))
        assert all(answer == answers[0] for answer in answers)
        runs.append(computed() - before)

    assert runs == [1, 1, 1]


def runs(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("ctr_jobs_per_run_count"))


def test_without_redis_scores_are_degraded_and_heal(tmp_path: Path, store: ModelStore) -> None:
    """Last profile, then no history; strict and events 503; all well again without a restart."""
    path = tmp_path / "r.sock"

    def start() -> subprocess.Popen[bytes]:
        command = [str(find_server()), "--port", "0", "--unixsocket", str(path)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    redis = start()
    wait_for(path.exists)
    # The change log, which would drop the row of a new video once more, is read at the start alone.
    flags = ("--redis-url", f"unix://{path}", "--change-poll-seconds", "3600")
    try:
        with serving(store, tmp_path, *flags) as client:
            put(client, [{"video_id": "kept", "category": 1, "features": [1, 2, 3]}])
            event = {"user_id": "known", "video_id": "kept", "timestamp": NOW}
            post(client, [event])
            candidates = [{"video_id": "kept"}, {"video_id": "other"}]
            before = score(client, "known", candidates)
            os.kill(redis.pid, signal.SIGKILL)
            redis.wait()

            known, unknown = (score(client, user, candidates) for user in ("known", "unknown"))
            assert known["degraded"]["level"] == "last_profile"
            assert known["results"][0] == before["results"][0]
            assert known["results"][1]["reason"] == "state_down"
            assert unknown["degraded"]["level"] == "no_history"
            body = {"user_id": "known", "candidates": candidates, "strict": True}
            assert client.post("/score", json=body).status_code == 503
            # What is remembered would do for this token, and not for a newer one.
            version = before["history"]["version"]
            score(client, "known", candidates, min_history_version=version)
            newer = {**body, "strict": False, "min_history_version": version + 1}
            assert client.post("/score", json=newer).status_code == 503
            down = client.post("/events", json={"events": [event]})
            assert down.status_code == 503
            assert down.headers["retry-after"] == "1"
            assert client.get("/health/ready").json()["redis"] == "down"
            before_runs = runs(client)
            for _ in range(20):
                score(client, "known", candidates[:1])
            # Open, the circuit says so at once: nothing is scored twice, but by a probe.
            assert 20 <= runs(client) - before_runs < 30
            levels = client.get("/metrics").text
            assert 'ctr_degraded_total{level="last_profile"} 22.0' in levels
            assert "ctr_redis_circuit_open 1.0" in levels

            path.unlink()
            redis = start()
            wait_for(lambda: client.post("/score", json=body).status_code == 200)
            healed = score(client, "known", candidates)
            assert "degraded" not in healed
            assert healed["history"] == before["history"]
    finally:
        redis.kill()
        redis.wait()
