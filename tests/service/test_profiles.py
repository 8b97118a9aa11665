"""Profiles against what changes under them: videos, histories, users, slower computations."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

from model_store import Click, ModelStore, OpenVersion
from service import metrics
from service.changes import Changes
from service.last_profiles import LastProfiles, Profile
from service.packed_profile import Origin, pack_profile, read_origin
from service.profiles import Profiles
from service.state import History, NewClick, NewProfile, Position, State, Video, mark

START = 1_700_000_000_000
_serial = count()


class Process:
    """What a process of the service has of profiles, its change logs read when told."""

    def __init__(self, url: str) -> None:
        self.state = State(url)
        self.changes = Changes(self.state, poll_seconds=3_600)
        self.executor = ThreadPoolExecutor(1)
        self.profiles = Profiles(
            self.state,
            self.changes,
            executor=self.executor,
            row_cache_bytes=2**16,
            last_profiles=100,
        )

    async def profile(self, opened: OpenVersion, user: str) -> Profile:
        view = await self.profiles.view(opened, user, ())
        found = await self.profiles.profile(opened, user, view)
        await asyncio.gather(*self.profiles._storing)
        return found

    async def close(self) -> None:
        await self.profiles.close()
        await self.state.close()
        self.executor.shutdown()


@pytest.fixture
def user() -> str:
    return f"profiled-{next(_serial)}"


@pytest.fixture
def opened(store: ModelStore) -> OpenVersion:
    return store.open()


@pytest.fixture
async def processes(redis_url: str) -> AsyncIterator[list[Process]]:
    both = [Process(redis_url) for _ in range(2)]
    for process in both:
        await process.changes.poll()
    yield both
    for process in both:
        await process.close()


def film(value: float) -> Video:
    return Video(1, np.full(3, value, np.float32))


async def test_a_profile_from_a_stale_row_does_not_answer_for_long(
    processes: list[Process], opened: OpenVersion, user: str
) -> None:
    """A process that could not read the change logs for seconds leaves no wrong profile behind."""
    late, other = processes
    await other.state.register([(f"{user}-v", film(1))])
    await other.state.append([NewClick(user, Click(START, f"{user}-v"))])
    await late.profile(opened, user)
    await other.state.register([(f"{user}-v", film(2))])
    await asyncio.sleep(1.2)
    await other.state.append([NewClick(user, Click(START + 1, f"{user}-v"))])
    stale = await late.profile(opened, user)
    for process in processes:
        await process.changes.poll()
    found = [await process.profile(opened, user) for process in processes]

    # Two clicks on it in a block of forty.
    assert stale.array[0, 0] == pytest.approx(1 * 2 / 40, rel=1e-4)
    assert [p.array[0, 0] for p in found] == pytest.approx([2 * 2 / 40] * 2, rel=1e-4)


async def test_a_profile_is_computed_again_when_its_video_is_registered(
    processes: list[Process], opened: OpenVersion, user: str
) -> None:
    """At once, by whichever process; until then it answers, and is said to be fresh."""
    one, other = processes
    await one.state.append([NewClick(user, Click(START, f"{user}-v"))])
    first = [await process.profile(opened, user) for process in processes]
    view = await one.profiles.view(opened, user, ())
    told = await one.profiles.describe(opened, view.meta, view.profile)
    await other.state.register([(f"{user}-v", film(3))])
    stale = await one.profiles.describe(opened, view.meta, view.profile)
    second = [await process.profile(opened, user) for process in processes]

    assert told["state"] == "fresh"
    assert stale["state"] == "stale"
    assert all((profile.array[0, :3] == 0).all() for profile in first)
    assert all((profile.array[0, :3] > 0).all() for profile in second)


async def test_a_slow_computation_overwrites_no_newer_one(redis_url: str, user: str) -> None:
    """Of two profiles of one history the one whose facts were read later stays."""
    state = State(redis_url)
    version = (await state.append([NewClick(user, Click(START, "v"))])).users[user].version

    def new(model: str, read_at_ms: int) -> NewProfile:
        origin = Origin(model, version, read_at_ms, np.zeros(1, np.uint32))
        packed = pack_profile(np.zeros((1, 5), np.float32), origin)
        return NewProfile(user, version, packed, read_at_ms=read_at_ms)

    order = [new("old", START), new("new", START + 900), new("old", START + 899)]
    stored = [(await state.store_profiles([each]))[0] for each in order]
    kept = read_origin((await state.view(user, [])).profile)
    await state.append([NewClick(user, Click(START + 1, "v"))])
    version = (await state.view(user, [])).position.version
    # Of another history the newer one counts, whatever the clocks say.
    assert await state.store_profiles([new("next", START - 1)]) == [True]
    await state.close()

    assert stored == [True, True, False]
    assert kept is not None
    assert kept.model_version == "new"


async def test_a_request_of_the_version_before_leaves_the_rows_of_the_present_one(
    processes: list[Process], store: ModelStore, user: str
) -> None:
    """It began before the swap and computes a profile after it; what was warmed stays warm."""
    [process, _] = processes
    old, new = store.open(), store.open()
    await process.state.register([(f"{user}-v", film(1))])
    await process.state.append([NewClick(user, Click(START, f"{user}-v"))])
    before = process.profiles.rows(old)
    await process.profile(old, user)
    process.profiles.prepare(new).put({"warm": np.zeros(4, np.float32)}, generation=0)
    present = process.profiles.rows(new)
    await process.state.append([NewClick(user, Click(START + 1, f"{user}-v"))])
    late = await process.profile(old, user)

    assert process.profiles.rows(old) is before
    assert process.profiles.rows(new) is present
    assert present.look_up(["warm"])[0] >= 0
    assert late.position.length == 2
    del before
    gc.collect()
    # Nobody holds it any more: what still comes gets one for itself alone.
    assert len(process.profiles.rows(old)) == 0
    assert process.profiles.rows(new) is present


async def test_a_video_that_does_not_fit_the_model_costs_one_profile(
    processes: list[Process], opened: OpenVersion, user: str
) -> None:
    """It is skipped; the profile holds until the video is registered as the model wants it."""
    [process, _] = processes
    await process.state.register([(f"{user}-v", Video(1, np.ones(7, np.float32)))])
    await process.state.append([NewClick(user, Click(START, f"{user}-v"))])
    first = [await process.profile(opened, user) for _ in range(2)]
    await asyncio.sleep(1.2)
    await process.changes.poll()
    held = [await process.profile(opened, user) for _ in range(2)]
    await process.state.register([(f"{user}-v", film(3))])
    await process.changes.poll()
    fits = await process.profile(opened, user)

    assert held[0] is held[1]
    assert (first[0].array[0, :3] == 0).all()
    assert (fits.array[0, :3] > 0).all()


async def test_what_is_computed_in_vain_is_counted_and_not_returned(
    processes: list[Process], opened: OpenVersion, user: str
) -> None:
    """A history that moves while its profile is computed: the lag is of stored profiles only."""
    [process, other] = processes
    for name in (user, f"{user}-still"):
        await process.state.append([NewClick(name, Click(START, "v"))])
    before = metrics.PROFILES.labels("not_stored")._value.get()
    run = process.profiles._run

    async def slow_run(opened: OpenVersion, histories: Sequence[History]) -> object:
        await other.state.append([NewClick(user, Click(START + 1, "v"))])
        return await run(opened, histories)

    process.profiles._run = slow_run  # type: ignore[method-assign,assignment]
    stored = await process.profiles.compute(opened, [user, f"{user}-still"])

    assert list(stored) == [f"{user}-still"]
    assert metrics.PROFILES.labels("not_stored")._value.get() == before + 1
    assert (await other.state.view(user, [])).profile is None


def remembered(version: int, model: str = "m") -> Profile:
    origin = Origin(model, version, 0, np.zeros(0, np.uint32))
    return Profile(np.zeros((1, 1), np.float32), Position(version, 1), origin)


def test_what_is_remembered_never_goes_back() -> None:
    """A request that took longer does not put an older history over a newer one.

    A profile of another model is another matter: the one that was asked for last is kept.
    """
    last = LastProfiles(2)
    older, newer, other = remembered(7), remembered(8), remembered(7, "n")
    found = []
    for profile in (older, newer, older, other):
        last.keep("u", profile)
        found.append(last._profiles[mark("u")])

    assert found == [older, newer, newer, other]


def test_a_deleted_user_is_not_remembered_again() -> None:
    """A profile that was being computed when the user was deleted is not kept."""
    last = LastProfiles(2)
    profile = remembered

    last.keep("u", profile(7))
    last.forget(mark("u"), before=9)
    assert "u" not in last
    last.keep("u", profile(8))
    assert "u" not in last
    last.keep("u", profile(9))
    assert "u" in last
    for name in ("a", "b", "c"):
        last.forget(mark(name), before=5)
    last.keep("c", profile(4))
    assert "c" not in last
