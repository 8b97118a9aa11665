"""One round trip: counted at a proxy between the service, or its state, and Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest

from benchmarks.round_trips import CountingProxy, counting_proxy
from model_store import Click, ModelStore
from service.state import NewClick, NewProfile, State
from service.state.door import Script

from .conftest import serving, wait_for

START = 1_700_000_000_000
APPEND, CLICKED = (Script.load(name).sha.encode() for name in ("append", "clicked"))
VIDEOS = [f"trip-v{i}" for i in range(200)]


@pytest.fixture
def proxy(redis_url: str, tmp_path: Path) -> Iterator[CountingProxy]:
    with counting_proxy(Path(unquote(urlsplit(redis_url).path)), tmp_path / "p.sock") as proxy:
        yield proxy


@pytest.fixture
async def state(proxy: CountingProxy, tmp_path: Path) -> AsyncIterator[State]:
    state = State(f"unix://{tmp_path / 'p.sock'}", timeout_seconds=20)
    # Both ways to Redis are open, and the scripts are there.
    await state.append([NewClick("first", Click(START, "v"))])
    await state.videos(["v"])
    yield state
    await state.close()


@pytest.mark.parametrize("number", [1, 100, 10_000])
async def test_events_of_any_number_are_one_round_trip(
    state: State, proxy: CountingProxy, number: int
) -> None:
    """Ten thousand clicks of five hundred users are sent before any answer has come."""
    users = min(number, 500)
    clicks = [
        NewClick(f"trip-{number}-{i % users}", Click(START + i, f"v{i % 77}"), f"e{i}")
        for i in range(number)
    ]
    proxy.hold(users + 1, APPEND, CLICKED)
    appended = await state.append(clicks)

    assert appended.verdicts == ["accepted"] * number
    assert proxy.commands(b"") == users + 1
    assert proxy.round_trips(b"") == 1


async def test_two_calls_are_two_round_trips(state: State, proxy: CountingProxy) -> None:
    """The count can be more than one."""
    proxy.hold(4, APPEND, CLICKED)
    for number in range(2):
        await state.append([NewClick("twice", Click(START + number, "v"))])

    assert proxy.round_trips(b"") == 2


async def test_a_look_at_a_user_and_videos_is_one_round_trip(
    state: State, proxy: CountingProxy
) -> None:
    """User, profile and missing videos come in one answer."""
    position = (await state.append([NewClick("warm", Click(START, "v"))])).users["warm"]
    await state.store_profiles([NewProfile("warm", position.version, b"profile")])
    proxy.hold(3, b"")
    view = await state.view("warm", VIDEOS)

    assert view.profile == b"profile"
    assert proxy.round_trips(b"") == 1


def score(client: httpx.Client, user: str) -> None:
    body = {"user_id": user, "candidates": [{"video_id": v} for v in VIDEOS]}
    client.post("/score", json=body).raise_for_status()


def test_over_http_a_call_is_one_round_trip(
    proxy: CountingProxy, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score on a warm profile, in memory or in Redis, videos in memory or not; events of 500."""
    flags = ("--redis-url", f"unix://{tmp_path / 'p.sock'}")
    monkeypatch.setenv("CTR_REDIS_TIMEOUT_SECONDS", "20")
    now = int(time.time() * 1e3)
    facts = [{"video_id": v, "category": 1, "features": [1, 2, 3]} for v in VIDEOS]
    # One clicked a video that nobody registered.
    clicks = {"trip-warm": "trip-v1", "trip-odd": "trip-nowhere"}

    def fresh(client: httpx.Client, user: str) -> bool:
        return bool(client.get(f"/users/{user}").json()["profile"]["state"] == "fresh")

    with serving(store, tmp_path, *flags) as client:
        client.put("/videos", json={"videos": facts}).raise_for_status()
        for user, video in clicks.items():
            event = {"user_id": user, "video_id": video, "timestamp": now}
            client.post("/events", json={"events": [event]}).raise_for_status()
            score(client, user)
            wait_for(lambda user=user: fresh(client, user))
            score(client, user)
            proxy.forget()
            score(client, user)
            assert proxy.round_trips(b"u:", b"v:") == 1
        many = [
            {"user_id": f"many-{i % 500}", "video_id": f"trip-v{i % 200}", "timestamp": now + i}
            for i in range(10_000)
        ]
        proxy.hold(501, APPEND, CLICKED)
        client.post("/events", json={"events": many}).raise_for_status()
        assert proxy.commands(APPEND, CLICKED) == 501
        assert proxy.round_trips(APPEND, CLICKED) == 1
    # A process that starts knows neither the profile nor, with this setting, any video.
    monkeypatch.setenv("CTR_WARM_VIDEOS", "0")
    with serving(store, tmp_path, *flags) as client:
        client.post("/score", json={"user_id": "new", "candidates": [{"video_id": "x"}]})
        proxy.forget()
        score(client, "trip-warm")
        assert proxy.commands(b"v:") == 1
        assert proxy.round_trips(b"u:", b"v:") == 1
