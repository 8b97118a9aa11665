"""Histories in a real Redis against their definition."""

from __future__ import annotations

import asyncio
from itertools import count

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from model_store import Click, visible_history
from service.state import NewClick, NewProfile, State, Video

clicks = st.builds(
    Click,
    st.integers(1_700_000_000_000, 1_700_000_000_040),
    st.sampled_from(["a", "b", "é", "Z", "a:1", "}", "~"]),
)
_users = count()


@settings(max_examples=30)
@given(st.lists(clicks, max_size=400), st.integers(1, 400), st.randoms())
def test_history_is_the_visible_history(redis_url, events, size, random) -> None:
    """In any order, in any batches, repeated or not, the history is visible_history."""
    user = f"user}}{next(_users)}"
    again = events[: len(events) // 2]
    random.shuffle(again)
    delivered = events + again

    async def deliver() -> tuple[int, int, int, list[Click]]:
        state = State(redis_url)
        try:
            for start in range(0, len(delivered), size):
                batch = [NewClick(user, c) for c in delivered[start : start + size]]
                await state.append(batch)
            before = (await state.view(user, [])).position
            if events:
                await state.append([NewClick(user, c) for c in events])
            history = await state.history(user)
            return before.version, history.meta.position.version, before.length, history.clicks
        finally:
            await state.close()

    before, version, length, history = asyncio.run(deliver())
    assert history == visible_history(events)
    assert length == len(history)
    assert version == before


async def test_a_large_call_of_one_user_is_taken(redis_url) -> None:
    """10,000 clicks of one user in one call leave the newest 160."""
    state = State(redis_url)
    new = [NewClick("large", Click(1_700_000_000_000 + i, "v"), f"e{i}") for i in range(10_000)]
    appended = await state.append(new)
    history = (await state.history("large")).clicks
    await state.close()

    assert set(appended.verdicts) == {"accepted"}
    assert [c.clicked_at_ms for c in history] == [c.click.clicked_at_ms for c in new[-160:]]


async def test_a_profile_of_an_older_history_is_not_stored(redis_url) -> None:
    """Compare and set: only the profile of the present history is kept."""
    state = State(redis_url)
    first = await state.append([NewClick("cas", Click(1_700_000_000_000, "v"))])
    second = await state.append([NewClick("cas", Click(1_700_000_000_001, "v"))])
    old, new = first.users["cas"].version, second.users["cas"].version

    assert new > old
    stored = await state.store_profiles(
        [NewProfile("cas", old, b"old"), NewProfile("cas", new, b"new")]
    )
    assert stored == [False, True]
    assert (await state.view("cas", [])).profile == b"new"
    await state.close()


async def test_videos_come_back_as_float16(redis_url) -> None:
    """A stored video keeps its category and its features as far as float16 does."""
    state = State(redis_url)
    video = Video(-3, np.array([0.1, -65504, 0], np.float32))
    assert await state.register([("kept", video), ("kept", video)]) == [True, False]
    [kept, absent] = await state.videos(["kept", "absent"])
    await state.close()

    assert kept is not None
    assert kept.category == -3
    assert np.array_equal(kept.features, video.features.astype(np.float16).astype(np.float32))
    assert absent is None
