"""The background: bounded, many users at once, dropped first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from service import metrics
from service.background import Background
from service.events import Events
from service.last_profiles import LastProfiles, Profile
from service.state import Position, State, StateDownError


class Recorder:
    """Stands for profiles and live model; fails when told."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.down = False

    def current(self) -> Recorder:
        return self

    async def compute(self, opened: object, user_ids: Sequence[str]) -> dict[str, Profile]:
        if self.down:
            raise StateDownError("gone")
        self.runs.append(list(user_ids))
        return {user: Profile(None, Position(1, 1)) for user in user_ids}


def outcome(name: str) -> float:
    return metrics.PROFILES.labels(name)._value.get()


async def finished(background: Background, seconds: float = 0.1) -> None:
    task = asyncio.create_task(background.run())
    await asyncio.sleep(seconds)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def background(recorder: Recorder, *, busy: bool = False, size: int = 100) -> Background:
    return Background(recorder, recorder, busy=lambda: busy, queue_size=size, patience_seconds=0.05)


async def test_many_users_are_one_run() -> None:
    """Seventy users are three runs of at most 32; who waits already is not put twice."""
    recorder = Recorder()
    waiting = background(recorder)
    waiting.refresh([f"u{i}" for i in range(70)])
    waiting.refresh(["u3"])
    await finished(waiting)

    assert [len(run) for run in recorder.runs] == [32, 32, 6]
    assert sorted(user for run in recorder.runs for user in run) == sorted(
        f"u{i}" for i in range(70)
    )


async def test_only_a_history_that_moved_is_computed(redis_url: str) -> None:
    """Deliveries that are repeated, by the thousand perhaps, do not push others out."""
    state = State(redis_url)
    waiting = background(Recorder())
    events = Events(state, LastProfiles(9), waiting, future_tolerance_seconds=60)
    moment = 1_700_000_000_000

    async def click(user: str, at: int) -> list[str]:
        event = {"user_id": user, "video_id": "v", "timestamp": moment + at}
        verdicts, _ = await events.record([event, event])
        return [verdict.status for verdict in verdicts]

    first = await click("moving", 1)
    assert list(waiting._waiting) == ["moving"]
    waiting._take()
    again = await click("moving", 1)
    assert not waiting._waiting
    late = await click("moving", 0)
    await state.close()

    assert (first, again) == (["accepted", "duplicate"], ["duplicate", "duplicate"])
    assert late == ["late", "duplicate"]
    assert list(waiting._waiting) == ["moving"]


async def test_a_full_queue_drops_and_counts() -> None:
    """What does not fit is left to the next score, and seen in the metrics."""
    recorder = Recorder()
    dropped = outcome("dropped")
    waiting = background(recorder, size=10)
    waiting.refresh([f"u{i}" for i in range(25)])
    await finished(waiting)

    assert outcome("dropped") - dropped == 15
    assert sum(map(len, recorder.runs)) == 10


async def test_under_load_it_waits_and_then_drops() -> None:
    """While requests wait for the model nobody is profiled ahead; who waited too long goes."""
    recorder = Recorder()
    dropped = outcome("dropped")
    waiting = background(recorder, busy=True)
    waiting.refresh(["a", "b"])
    await finished(waiting, seconds=0.2)

    assert recorder.runs == []
    assert outcome("dropped") - dropped == 2


async def test_it_survives_a_store_that_is_down() -> None:
    """What fails is dropped; what comes later is computed."""
    recorder = Recorder()
    waiting = background(recorder)
    task = asyncio.create_task(waiting.run())
    recorder.down = True
    waiting.refresh(["a"])
    await asyncio.sleep(0.03)
    recorder.down = False
    waiting.refresh(["b"])
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert recorder.runs == [["b"]]
