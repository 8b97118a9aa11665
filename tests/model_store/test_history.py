"""Which clicks a model may see."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import Click, blocks_of, visible_history

# Few moments and few videos, so that ties and duplicates are common.
clicks = st.lists(
    st.builds(Click, st.integers(0, 9), st.sampled_from(["a", "b", "ä", "B", "10", "9"])),
    max_size=40,
)
lengths = st.integers(0, 12)


@given(clicks, lengths, st.randoms(use_true_random=False))
def test_delivery_order_does_not_matter(
    history: list[Click], length: int, rng: random.Random
) -> None:
    """Reordered and repeated deliveries end in the same history."""
    retried = history + rng.sample(history, len(history) // 2)
    rng.shuffle(retried)

    assert visible_history(history, length=length) == visible_history(retried, length=length)


@given(clicks, lengths)
def test_history_is_ordered_and_distinct(history: list[Click], length: int) -> None:
    """Clicks come oldest first, each once."""
    seen = visible_history(history, length=length)

    assert seen == sorted(set(seen), key=Click.order)


@given(clicks, lengths)
def test_the_newest_are_kept(history: list[Click], length: int) -> None:
    """What is cut off is older than, or ties with, everything that is kept."""
    seen = visible_history(history, length=length)
    lost = set(history) - set(seen)

    assert len(seen) == min(length, len(set(history)))
    assert all(old.order() < kept.order() for old in lost for kept in seen)


@given(clicks, st.integers(0, 10))
def test_the_present_is_invisible(history: list[Click], now: int) -> None:
    """Only clicks strictly before the moment are seen."""
    seen = visible_history(history, before_ms=now)

    assert set(seen) == {c for c in history if c.clicked_at_ms < now}


@given(clicks, lengths)
def test_trimming_early_changes_nothing(history: list[Click], length: int) -> None:
    """A store that trims after every click ends where one that never trims ends."""
    kept: list[Click] = []
    for click in history:
        kept = visible_history([*kept, click], length=length)

    assert kept == visible_history(history, length=length)


def test_ties_follow_the_bytes_of_the_id() -> None:
    """Clicks of one moment are ordered by the UTF-8 bytes of the video id."""
    tied = [Click(5, name) for name in ("ä", "b", "B", "10", "9")]

    assert [c.video_id for c in visible_history(tied)] == ["10", "9", "B", "b", "ä"]


def test_the_default_length_is_160() -> None:
    """A model sees 160 clicks unless told otherwise."""
    history = visible_history(Click(t, "v") for t in range(500))

    assert [c.clicked_at_ms for c in history] == list(range(340, 500))


def test_a_negative_length_is_refused() -> None:
    """A negative length is an error that names it."""
    with pytest.raises(ValueError, match="-1"):
        visible_history([], length=-1)


@given(st.integers(0, 6))
def test_padding_is_zeros_at_the_end(count: int) -> None:
    """Rows keep their places from the first block on, the rest is zero."""
    rows = np.arange(1, count * 2 + 1, dtype=np.float32).reshape(count, 2)
    blocks = blocks_of(rows, 2, 3)

    assert blocks.shape == (3, 2, 2)
    assert blocks.dtype == np.float32
    padded = blocks.reshape(6, 2)
    np.testing.assert_array_equal(padded[:count], rows)
    assert not padded[count:].any()


def test_too_many_rows_are_refused() -> None:
    """Padding never cuts; it names both numbers and the way out."""
    with pytest.raises(ValueError, match=r"7 clicks.*6.*visible_history"):
        blocks_of(np.zeros((7, 2), np.float32), 2, 3)
