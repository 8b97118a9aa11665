"""The usual ranking in two calls is the ranking that is made any other way, or is left to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from model_store import Click, ModelStore
from service import metrics
from service.admission import Admission, DeadlineError
from service.app import _assembled
from service.draining import Drain
from service.parts import Parts
from service.scoring import Candidates, Ranking, Wishes
from service.settings import Settings
from service.state import NewClick, State, Video

START = 1_700_000_000_000
VIDEOS = [f"quick-{i}" for i in range(300)]
_serial = count()
Outcome = Ranking | DeadlineError | None


class Stand:
    """What a process ranks with, and a user with a click whose profile it remembers."""

    def __init__(self, parts: Parts, user: str) -> None:
        self.parts = parts
        self.user = user
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    def begin(self, videos: Sequence[str] = VIDEOS, wishes: Wishes | None = None) -> bool:
        quick = self.parts.quick_scoring
        return quick.begin(self.user, videos, wishes or Wishes(), self.outcomes.put_nowait)

    async def outcome(self) -> Outcome:
        """Wait for the one outcome; nothing is held after it."""
        outcome = await asyncio.wait_for(self.outcomes.get(), 5)
        self.assert_nothing_held()
        assert self.outcomes.empty()
        return outcome

    def assert_nothing_held(self) -> None:
        assert self.parts.admission.rows == 0

    async def click(self, video: str = VIDEOS[1], *, by: State | None = None) -> None:
        state = by or self.parts.state
        await state.append([NewClick(self.user, Click(START + next(_serial), video))])


def guesses(outcome: str) -> float:
    return float(metrics.GUESSES.labels(outcome)._value.get())


@pytest.fixture
async def stand(store: ModelStore, redis_url: str) -> AsyncIterator[Stand]:
    # However slow the first runs are, which is what the others are judged by.
    limit = 10**7
    settings = Settings(
        model_store=store.root,
        redis_url=redis_url,
        inline_microseconds=limit,
        change_poll_seconds=3_600,
    )
    async with _assembled(settings, redis_url, Drain(0.0), Admission(20_000)) as parts:
        stand = Stand(parts, f"quick-{next(_serial)}")
        rng = np.random.default_rng(1)
        features = rng.normal(size=(len(VIDEOS), 3)).astype(np.float32)
        await parts.state.register(
            [
                (name, Video(i % 4, row))
                for i, (name, row) in enumerate(zip(VIDEOS, features, strict=True))
            ]
        )
        await stand.click()
        await parts.scoring.rank(stand.user, Candidates(VIDEOS))
        # Whatever was computed is stored.
        await asyncio.gather(*parts.profiles._storing)
        yield stand


async def test_it_is_what_a_ranking_is(stand: Stand) -> None:
    """The same places, the same scores to the bit, the same history, cut alike."""
    usual = await stand.parts.scoring.rank(stand.user, Candidates(VIDEOS), Wishes(top_k=7))
    for top_k, rows in ((7, 7), (None, len(VIDEOS))):
        assert stand.begin(wishes=Wishes(top_k=top_k))
        quick = await stand.outcome()
        assert isinstance(quick, Ranking)
        assert quick.places[:7].tolist() == usual.places.tolist()
        assert quick.scores[:7].tolist() == usual.scores.tolist()
        assert len(quick.places) == rows
        assert (quick.history, quick.model_version) == (usual.history, usual.model_version)
        assert quick.degraded is None
        assert not quick.unranked


async def test_no_outcome_comes_before_redis_answered(stand: Stand, redis_url: str) -> None:
    """Until then nobody knows whether the profile holds."""
    async with Redis.from_url(redis_url) as redis:
        await redis.execute_command("CLIENT PAUSE", 300, "ALL")
        assert stand.begin()
        await asyncio.sleep(0.1)
        assert stand.outcomes.empty()
        assert stand.parts.admission.rows > 0
        assert isinstance(await stand.outcome(), Ranking)


async def test_a_click_that_came_by_another_way_is_never_left_out(
    stand: Stand, redis_url: str
) -> None:
    """This process has not heard of it, Redis has: the ranking is made as others are."""
    other = State(redis_url)
    for _ in range(5):
        await stand.click(VIDEOS[2], by=other)
        metrics.KEPT.flush()
        wrong, runs = guesses("wrong"), metrics.JOBS_PER_RUN._sum.get()
        assert stand.begin()
        assert await stand.outcome() is None
        usual = await stand.parts.scoring.rank(stand.user, Candidates(VIDEOS))
        assert stand.begin()
        quick = await stand.outcome()
        assert isinstance(quick, Ranking)
        assert quick.history == usual.history
        assert quick.scores.tolist() == usual.scores.tolist()
        # One guess that was wrong is one: the head ran for it, for the ranking, and for the last.
        metrics.KEPT.flush()
        assert guesses("wrong") == wrong + 1
        assert metrics.JOBS_PER_RUN._sum.get() == runs + 3
    await other.close()


@pytest.mark.parametrize(
    "unusual",
    ["a new user", "an unknown video", "a video that is not in memory", "too many"],
)
async def test_what_is_unusual_is_not_begun(stand: Stand, unusual: str) -> None:
    """And leaves nothing behind."""
    videos = list(VIDEOS)
    match unusual:
        case "a new user":
            stand.user = "quick-nobody"
        case "an unknown video":
            videos[5] = "quick-nowhere"
        case "a video that is not in memory":
            await stand.parts.state.register([("quick-cold", Video(1, np.ones(3, np.float32)))])
            videos.append("quick-cold")
        case "too many":
            stand.parts.admission._limit = 100
            stand.parts.admission.rows = 1

    assert not stand.begin(videos)
    stand.parts.admission.rows -= unusual == "too many"
    await asyncio.sleep(0.05)
    assert stand.outcomes.empty()
    stand.assert_nothing_held()


async def test_a_history_that_is_behind_is_left_to_who_says_so(stand: Stand) -> None:
    """A caller who knows of a newer one gets its refusal the usual way."""
    assert stand.begin(wishes=Wishes(min_history_version=2**63 - 1))
    assert await stand.outcome() is None


async def test_a_head_that_fails_is_left_to_who_says_so(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is begun; the answer of Redis, which comes all the same, is nobody's."""

    def fails(_: Any) -> None:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr("service.head_queue.score", fails)
    assert not stand.begin()
    await asyncio.sleep(0.05)
    assert stand.outcomes.empty()
    monkeypatch.undo()
    stand.assert_nothing_held()
    assert stand.begin()
    assert isinstance(await stand.outcome(), Ranking)


async def test_a_deadline_ends_the_wait_for_redis(stand: Stand, redis_url: str) -> None:
    """With the error that a ranking has; what Redis says later changes nothing."""
    before = metrics.EXPIRED._value.get()
    async with Redis.from_url(redis_url) as redis:
        await redis.execute_command("CLIENT PAUSE", 400, "ALL")
        assert stand.begin(wishes=Wishes(timeout_seconds=0.05))
        outcome = await stand.outcome()
        assert isinstance(outcome, DeadlineError)
        assert str(outcome) == "the answer was not ready within 50 ms"
        assert metrics.EXPIRED._value.get() == before + 1
        await asyncio.sleep(0.6)
    assert stand.outcomes.empty()
    assert stand.begin()
    assert isinstance(await stand.outcome(), Ranking)


async def test_a_connection_that_breaks_is_left_to_who_tries_again(
    stand: Stand, redis_url: str
) -> None:
    """The question is lost, the request is not."""
    async with Redis.from_url(redis_url) as redis:
        await redis.execute_command("CLIENT PAUSE", 100, "ALL")
        assert stand.begin(wishes=Wishes(timeout_seconds=5.0))
        lane: Any = stand.parts.state._door._lane
        lane._protocol._transport.abort()
        assert await stand.outcome() is None
        # Not connected: it is not begun, rather than begun without a question on its way.
        assert not stand.begin()
        usual = await stand.parts.scoring.rank(stand.user, Candidates(VIDEOS))
        assert usual.degraded is None
    assert stand.begin()
    assert isinstance(await stand.outcome(), Ranking)


async def test_a_redis_that_hangs_opens_the_circuit(stand: Stand, redis_url: str) -> None:
    """As many questions without an answer as open it for others: who ranks instead need not wait."""
    lane: Any = stand.parts.state._door._lane
    lane._timeout_seconds = 0.1
    async with Redis.from_url(redis_url) as redis:
        await redis.execute_command("CLIENT PAUSE", 600, "ALL")
        assert all(stand.begin(wishes=Wishes(timeout_seconds=5.0)) for _ in range(8))
        found = [await asyncio.wait_for(stand.outcomes.get(), 5) for _ in range(8)]
        assert found == [None] * 8
        assert stand.parts.state.circuit_open
        assert not stand.begin()
        ranking = await stand.parts.scoring.rank(stand.user, Candidates(VIDEOS))
        assert ranking.degraded is not None
        await asyncio.sleep(0.8)
    lane._timeout_seconds = 2.0
    # Whoever asks in the usual way tries again, and connects anew.
    assert not stand.begin()
    for _ in range(100):
        ranking = await stand.parts.scoring.rank(stand.user, Candidates(VIDEOS))
        if ranking.degraded is None:
            break
        await asyncio.sleep(0.05)
    assert stand.begin()
    assert isinstance(await stand.outcome(), Ranking)


async def test_many_at_a_time_all_end(stand: Stand) -> None:
    """As many as are let in are begun, and every one of them has its outcome."""
    stand.parts.admission._limit = 10_000
    begun = sum(stand.begin(VIDEOS[i:]) for i in range(60))
    found = [await asyncio.wait_for(stand.outcomes.get(), 5) for _ in range(begun)]
    assert 1 < begun < 60
    sizes = [len(ranking.places) for ranking in found if isinstance(ranking, Ranking)]
    assert sizes == [300 - i for i in range(begun)]
    stand.assert_nothing_held()
