"""What a dump holds arrives, and nothing that is there already is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count

import numpy as np
import pytest

from model_store import Click
from service.state import Lifetimes, NewClick, State, Video, pack_video
from service.state.keys import user_keys, video_key
from service.state.transfer import Transfer, UserFacts, VideoFacts

START = 1_700_000_000_000
KEPT = Lifetimes(user_idle=100, video_idle=50)
_serial = count()


@pytest.fixture
def name() -> str:
    return f"transfer-{next(_serial)}"


@pytest.fixture
async def target(url: str) -> AsyncIterator[tuple[State, Transfer]]:
    async with AsyncExitStack() as stack:
        state, transfer = State(url, lifetimes=KEPT), Transfer(url, lifetimes=KEPT)
        stack.push_async_callback(state.close)
        stack.push_async_callback(transfer.close)
        yield state, transfer


def clicks(user: str, number: int, *, event_ids: bool = False) -> list[NewClick]:
    return [
        NewClick(user, Click(START + i, f"v{i}"), f"e{i}" if event_ids else "")
        for i in range(number)
    ]


def film(value: float, *, category: int = 1) -> Video:
    return Video(category, np.full(2, value, np.float32))


async def life_of(state: State, key: str) -> int:
    [life] = await state._door.call([("PTTL", key)])
    return int(life)


async def test_facts_move_between_servers(url: str, other_url: str, name: str) -> None:
    """Users and videos arrive byte for byte; restored twice, or over newer ones, none is lost."""
    source, target = State(url), State(other_url)
    from_, to = Transfer(url, lifetimes=KEPT), Transfer(other_url, lifetimes=KEPT)
    moved, merged = f"{name}-moved", f"{name}-merged"
    await source.append([*clicks(moved, 20, event_ids=True), *clicks(merged, 5)])
    await source.register([(name, Video(7, np.ones(3, np.float32)))])
    await target.append([NewClick(merged, Click(START + 2, "another"))])
    facts = [u async for part in from_.users() for u in part if u.user_id in (moved, merged)]
    films = [v async for part in from_.videos() for v in part if v.video_id == name]
    for _ in range(2):
        await to.put_users(facts)
        await to.put_videos(films, replace=False)

    there, here = await target.history(moved), await source.history(moved)
    assert (there.meta, there.clicks) == (here.meta, here.clicks)
    again = await target.append(clicks(moved, 20, event_ids=True))
    assert set(again.verdicts) == {"duplicate"}
    both = (await target.history(merged)).clicks
    assert len(both) == 6
    [film] = await target.videos([name])
    assert film is not None
    assert film.category == 7
    for each in (source, target, from_, to):
        await each.close()


async def test_a_user_who_is_there_still_expires(target: tuple[State, Transfer], name: str) -> None:
    """Clicks added to a user who is there move the expiry as clicks do; videos outlive them."""
    state, transfer = target
    await state.append(clicks(name, 2))
    facts = [u async for part in transfer.users() for u in part if u.user_id == name]
    await state.append([NewClick(name, Click(START + 9, "other"))])
    gone = f"{name}-gone"
    [own] = [type(u)(gone, u.meta, u.entries, u.life_ms) for u in facts]
    await state.append([NewClick(gone, Click(START + 9, "other"))])
    assert await transfer.put_users([*facts, own]) == 0

    for user in (name, gone):
        assert 0 < await life_of(state, user_keys(user).meta) <= 105_000
        assert len((await state.history(user)).clicks) == 3
    assert await life_of(state, video_key("v1")) > 150_000


async def test_a_replaced_video_is_told_to_every_process(
    target: tuple[State, Transfer], name: str
) -> None:
    """Rows and profiles that were made from the video before are dropped."""
    state, transfer = target
    kept, other = f"{name}-kept", f"{name}-other"
    await state.register([(kept, film(1)), (other, film(1))])
    before = (await state.changes({})).cursors
    facts = [VideoFacts(v, pack_video(film(2)), 10_000) for v in (kept, other)]
    assert await transfer.put_videos(facts[:1], replace=False) == 0
    assert await transfer.put_videos(facts, replace=True) == 2
    told = await state.changes(before)

    assert sorted(v for v, _ in told.videos) == [kept, other]
    assert [v.features[0] for v in await state.videos([kept]) if v] == [2.0]


async def test_a_restored_video_lives_no_shorter_than_its_clicks_ask(
    target: tuple[State, Transfer], name: str
) -> None:
    """Whether it was registered or not; one that is not in the dump's service stays registered."""
    state, transfer = target
    known, unknown = f"{name}-known", f"{name}-unknown"
    await state.register([(known, film(1))])
    await state.append([NewClick(name, Click(START, v)) for v in (known, unknown)])
    facts = [VideoFacts(v, pack_video(film(2)), 1_000) for v in (known, unknown)]
    assert await transfer.put_videos(facts, replace=True) == 2
    assert await transfer.put_videos([VideoFacts(known, b"", 1_000)], replace=True) == 0

    for video in (known, unknown):
        assert await life_of(state, video_key(video)) > 150_000
    assert await state.registered([known, unknown]) == [True, True]


async def test_what_was_about_to_expire_is_not_made_immortal(
    target: tuple[State, Transfer], name: str
) -> None:
    """A life of no time left, or one that ended while it was read, ends here, too."""
    state, transfer = target
    await state.append(clicks(name, 1))
    [facts] = [u async for part in transfer.users() for u in part if u.user_id == name]
    dying = f"{name}-dying"
    await transfer.put_users([UserFacts(dying, facts.meta, facts.entries, 0)])
    ends = {f"{name}-{life}": life for life in (0, -2)}
    videos = [VideoFacts(v, pack_video(film(1)), life) for v, life in ends.items()]
    await transfer.put_videos(videos, replace=False)
    await asyncio.sleep(0.01)

    assert (await state.history(dying)).clicks == []
    assert await state.registered(list(ends)) == [False, False]
