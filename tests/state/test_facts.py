"""Single facts about the state that the machine does not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import numpy as np
import pytest

from model_store import Click
from service.embedded_redis import embedded_redis
from service.state import Lifetimes, NewClick, NewProfile, State, StateDownError, Video
from service.state.door import Script
from service.state.keys import (
    GROUPS,
    TAGS,
    group_of,
    log_key,
    user_keys,
    user_of,
    video_key,
    video_of,
)

START = 1_700_000_000_000
_serial = count()


@pytest.fixture
def name() -> str:
    return f"facts-{next(_serial)}"


@pytest.fixture
async def state(url: str) -> AsyncIterator[State]:
    state = State(url)
    yield state
    await state.close()


def clicks(user: str, number: int, *, event_ids: bool = False) -> list[NewClick]:
    return [
        NewClick(user, Click(START + i, f"v{i}"), f"e{i}" if event_ids else "")
        for i in range(number)
    ]


async def lives(state: State, *keys: str) -> list[int]:
    return await state._door.call([("PTTL", key) for key in keys])


async def test_the_newest_160_event_ids_are_remembered(state: State, name: str) -> None:
    """An id is a duplicate until 160 newer ones were accepted, whatever it comes with."""
    for new in clicks(name, 165, event_ids=True):
        await state.append([new])
    again = [NewClick(name, Click(START + 1_000 + i, "other"), f"e{i}") for i in range(165)]

    verdicts = [(await state.append([new])).verdicts[0] for new in reversed(again)]

    assert verdicts[:160] == ["duplicate"] * 160
    assert "duplicate" not in verdicts[160:]


async def test_a_retry_of_a_call_leaves_the_same_bytes(state: State, name: str) -> None:
    """Delivered twice, in one call or in many, a history is the same to the last byte."""
    keys = user_keys(name)
    reads = [("GET", keys.meta), ("LRANGE", keys.history, 0, -1)]
    await state.append(clicks(name, 200, event_ids=True))
    before = await state._door.call(reads)
    for new in clicks(name, 200, event_ids=True)[-160:]:
        assert (await state.append([new])).verdicts == ["duplicate"]

    assert await state._door.call(reads) == before


async def test_versions_never_repeat_across_deletion(state: State, name: str) -> None:
    """A user who is deleted and comes back has a version above all before."""
    seen = []
    for round_ in range(5):
        at = START * 2 + round_
        seen.append((await state.append([NewClick(name, Click(at, "v"))])).users[name].version)
        seen.append((await state.delete_user(name)).version)
        # Forgotten altogether, as after the window.
        await state._door.call([("DEL", user_keys(name).meta)])

    assert seen == sorted(set(seen))


async def test_a_deleted_user_leaves_no_trace(state: State, name: str) -> None:
    """Clicks, event ids, profile and lease go; what stays expires with the window."""
    position = (await state.append(clicks(name, 3, event_ids=True))).users[name]
    await state.histories([name], lease_ms=60_000, token="t")  # noqa: S106
    await state.store_profiles([NewProfile(name, position.version, b"profile", "other")])
    await state.delete_user(name)
    keys = user_keys(name)

    existing = await state._door.call([("EXISTS", key) for key in keys])
    assert existing == [0, 1, 0, 0]
    [meta] = await state._door.call([("GET", keys.meta)])
    assert len(meta) == 34
    [life] = await lives(state, keys.meta)
    assert 0 < life <= 7 * 86_400_000


async def test_a_user_of_whom_a_key_was_lost_can_be_deleted(state: State, name: str) -> None:
    """A server that evicts keys, against all advice, breaks no deletion and no later click."""
    keys = user_keys(name)
    before = (await state.append(clicks(name, 3))).users[name].version
    await state._door.call([("DEL", keys.history)])
    deleted = await state.delete_user(name)
    fresh = NewClick(name, Click(deleted.refused_until_ms + 1, "v"))

    assert deleted.version > before
    assert (await state.append([fresh])).verdicts == ["accepted"]
    assert (await state.history(name)).clicks == [fresh.click]


async def test_one_process_gets_the_lease(state: State, name: str) -> None:
    """The first who asks gets it, the others nothing, until it is given back or runs out."""
    version = (await state.append(clicks(name, 1))).users[name].version
    asked = [await state.histories([name], lease_ms=60_000, token=t) for t in "abc"]

    assert [history is not None for [history] in asked] == [True, False, False]
    await state.store_profiles([NewProfile(name, version, b"p", "a")])
    [again] = await state.histories([name], lease_ms=30, token="b")  # noqa: S106
    assert again is not None
    assert again.leased
    await asyncio.sleep(0.05)
    [later] = await state.histories([name], lease_ms=30, token="c")  # noqa: S106
    assert later is not None


async def test_a_user_expires_as_one_and_videos_outlive_histories(url: str, name: str) -> None:
    """All keys of a user end together; a clicked video lives two idle times, others one."""
    state = State(url, lifetimes=Lifetimes(user_idle=100, video_idle=50))
    video = Video(1, np.zeros(2, np.float32))
    seen, unseen, unknown = f"{name}-seen", f"{name}-unseen", f"{name}-unknown"
    await state.register([(seen, video), (unseen, video)])
    new = [NewClick(name, Click(START, seen)), NewClick(name, Click(START, unknown))]
    appended = await state.append(new)
    await state.register([(unknown, video), (seen, Video(2, video.features))])
    version = appended.users[name].version
    await state.store_profiles([NewProfile(name, version, b"p")])
    keys = user_keys(name)

    history, meta, profile = await lives(state, keys.history, keys.meta, keys.profile)
    assert 104_000 < history <= 105_000
    assert max(history, meta, profile) - min(history, meta, profile) < 20
    assert appended.known == [True, False]
    lengths = await lives(state, *map(video_key, (seen, unseen, unknown)))
    assert [round(length, -4) for length in lengths] == [200_000, 50_000, 200_000]
    await state.close()


async def test_an_old_click_keeps_its_video_alive(embedded_url: str, name: str) -> None:
    """After half an idle time the user's next click renews all videos of the history."""
    state = State(embedded_url, lifetimes=Lifetimes(user_idle=3.0, video_idle=0.5))
    old, new = f"{name}-old", f"{name}-new"
    await state.register([(old, Video(1, np.zeros(2, np.float32)))])
    await state.append([NewClick(name, Click(START, old))])
    for i in range(3):
        # Longer than the life that the first click gave its video.
        await asyncio.sleep(2.5)
        await state.append([NewClick(name, Click(START + 1 + i, new))])

    assert await state.registered([old]) == [True]
    assert len((await state.history(name)).clicks) == 4
    await asyncio.sleep(3.3)
    assert (await state.history(name)).clicks == []
    await state.close()


async def test_settings_that_keep_for_ever_reach_what_is_there(url: str, name: str) -> None:
    """Users and clicked videos lose their expiry with the next click."""
    mortal = State(url, lifetimes=Lifetimes(user_idle=100, video_idle=50))
    await mortal.register([(name, Video(1, np.zeros(2, np.float32)))])
    await mortal.append([NewClick(name, Click(START, name))])
    immortal = State(url, lifetimes=Lifetimes(user_idle=0, video_idle=50))
    await immortal.append([NewClick(name, Click(START + 1, name))])
    keys = user_keys(name)

    assert await lives(immortal, keys.history, keys.meta, video_key(name)) == [-1, -1, -1]
    await mortal.close()
    await immortal.close()


async def test_every_reader_sees_every_change(state: State, name: str) -> None:
    """Changes and deletions reach whoever follows the logs, from wherever they start."""
    early = (await state.changes({})).cursors
    ids = [f"{name}-{i}" for i in range(100)]
    await state.register([(i, Video(1, np.zeros(2, np.float32))) for i in ids])
    assert (await state.changes(early)).videos == []
    await state.register([(i, Video(2, np.zeros(2, np.float32))) for i in ids])
    changed = await state.changes(early)
    assert sorted(v for v, _ in changed.videos) == sorted(ids)
    assert not changed.gap
    await state.delete_video(ids[0])
    await state.delete_user(name)
    later = await state.changes(changed.cursors)

    assert [v for v, _ in later.videos] == ids[:1]
    assert len(later.users) == 1
    assert (await state.changes(later.cursors)).videos == []


async def test_a_log_that_was_lost_is_a_gap(state: State, name: str) -> None:
    """Whoever was away while the log was trimmed or wiped is told so."""
    video = [Video(i, np.zeros(2, np.float32)) for i in range(3)]
    await state.register([(name, video[0])])
    await state.register([(name, video[1])])
    before = await state.changes({})
    await state._door.call([("DEL", log_key(group)) for group in range(GROUPS)])
    await state.register([(name, video[2])])
    after = await state.changes(before.cursors)

    assert after.gap
    assert after.unknown_before_ms > 0


async def test_videos_are_deleted_and_come_back(state: State, name: str) -> None:
    """A deleted video is not registered; registering it again is new."""
    video = pytest.importorskip("service.state").pack_video(Video(1, np.ones(2, np.float32)))
    assert await state.register_packed([(name, video)]) == [2]
    assert await state.register_packed([(name, video)]) == [0]
    assert await state.delete_video(name)
    assert not await state.delete_video(name)
    assert await state.videos([name]) == [None]
    assert await state.register_packed([(name, video)]) == [2]


def test_keys_give_their_ids_back() -> None:
    """Every id survives its key, and the tags are spread evenly over the slots."""
    for identifier in ("a", "}", "%7D", "%", "a}b{c", "ü", "x:m"):
        assert user_of(user_keys(identifier).meta) == identifier
        assert video_of(video_key(identifier)) == identifier
    key_slot = pytest.importorskip("redis.crc").key_slot
    shares = [key_slot(log_key(group).encode()) // 256 for group in range(GROUPS)]
    assert shares == list(range(64))
    assert len(set(TAGS)) == GROUPS


@pytest.mark.parametrize(
    "nowhere",
    [
        "redis://127.0.0.1:1/0",
        "rediss://127.0.0.1:1/0",
        "unix:///nowhere/at/all",
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/mine",
        "redis+cluster://127.0.0.1:1,127.0.0.1:2",
    ],
)
@pytest.mark.timeout(20)
async def test_no_redis_is_state_down(nowhere: str) -> None:
    """Nobody there: an error within the attempts, then at once."""
    state = State(nowhere, timeout_seconds=0.2)
    for _ in range(4):
        with pytest.raises(StateDownError):
            await state.ping()
    assert state.circuit_open
    await state.close()


async def test_a_deletion_is_remembered_for_its_window(url: str, name: str) -> None:
    """Also where users expire sooner: new clicks do not shorten it, and old ones stay refused."""
    state = State(url, lifetimes=Lifetimes(user_idle=0.2, deletion_window=60))
    old = clicks(name, 3)
    await state.append(old)
    deleted = await state.delete_user(name)
    for later in (1, 2):
        fresh = NewClick(name, Click(deleted.refused_until_ms + later, "v"))
        assert (await state.append([fresh])).verdicts == ["accepted"]
    keys = user_keys(name)

    history, meta = await lives(state, keys.history, keys.meta)
    assert 50_000 < meta <= 60_000
    assert abs(history - meta) < 20
    await asyncio.sleep(0.3)
    assert set((await state.append(old)).verdicts) == {"deleted"}
    await state.close()


async def test_a_video_that_expired_and_came_back_is_told(embedded_url: str, name: str) -> None:
    """Whoever still holds its old row learns that there is another."""
    state = State(embedded_url, lifetimes=Lifetimes(video_idle=0.05))
    await state.register([(name, Video(1, np.zeros(2, np.float32)))])
    before = (await state.changes({})).cursors
    await asyncio.sleep(0.06)
    assert await state.registered([name]) == [False]
    await state.register([(name, Video(1, np.ones(2, np.float32)))])
    told = await state.changes(before)

    assert told.appeared == [name]
    assert told.videos == []
    await state.close()


async def test_a_log_that_was_trimmed_since_it_was_empty_is_a_gap(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whoever saw it empty missed what was trimmed."""
    with embedded_redis(tmp_path_factory.mktemp("trimmed")) as url:
        state = State(url)
        before = await state.changes({})
        assert not before.gap
        videos = [Video(i, np.zeros(2, np.float32)) for i in range(4)]
        for video in videos:
            await state.register([("v", video)])
        await state._door.call([("XTRIM", log_key(group_of("v")), "MAXLEN", 1)])

        assert (await state.changes(before.cursors)).gap
        assert not (await state.changes({})).gap
        await state.close()


async def test_a_script_that_one_server_does_not_know_repeats_no_other(
    embedded_url: str, name: str
) -> None:
    """A new release changes some scripts: the verdicts of those that ran are the first ones."""
    state = State(embedded_url)
    await state.ping()
    append = Script.load("append")
    await state._door.call([("SCRIPT FLUSH",), ("SCRIPT LOAD", append.text)])

    assert (await state.append(clicks(name, 1))).verdicts == ["accepted"]
    await state.close()
