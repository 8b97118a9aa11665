"""Paired comparisons against scipy, brute force and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.significance import bootstrap_means, compare_paired, holm

per_user = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 9)), min_size=3, max_size=40
)


@given(per_user)
def test_the_t_test_is_scipys(rows: list[tuple[float, float, int]]) -> None:
    """Without weights, difference and p-value are those of scipy's paired test."""
    first, second = np.array([a for a, _, _ in rows]), np.array([b for _, b, _ in rows])
    difference = first - second

    paired = compare_paired(first, second, samples=50)

    assert paired.difference == pytest.approx(difference.mean(), abs=1e-12)
    assert paired.users == len(rows)
    if difference.std() > 1e-9:
        expected = stats.ttest_rel(first, second).pvalue
        assert paired.p_value == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(per_user)
def test_a_weighted_difference_is_of_weighted_means(rows: list[tuple[float, float, int]]) -> None:
    """With weights, the difference is the one between the two weighted means."""
    first, second, weights = (np.array(column, float) for column in zip(*rows, strict=True))

    paired = compare_paired(first, second, weights=weights, samples=50)

    expected = np.average(first, weights=weights) - np.average(second, weights=weights)
    assert paired.difference == pytest.approx(expected, abs=1e-12)


def test_bootstrap_means_are_of_users_drawn_with_replacement() -> None:
    """Chunked or not, each mean is of as many users as there are; their spread is the SE."""
    rng = np.random.default_rng(3)
    values = rng.normal(0.1, 1.0, 400)

    means = bootstrap_means(values, np.ones(400), samples=4000, seed=1)

    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 experiments with a known difference, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(4)
    held = 0
    for trial in range(200):
        base = rng.random(300)
        paired = compare_paired(base + rng.normal(0.02, 0.1, 300), base, samples=400, seed=trial)
        held += paired.low <= 0.02 <= paired.high

    assert 0.9 <= held / 200 <= 0.99


def test_no_difference_is_no_finding() -> None:
    """A model against itself: nothing, for certain."""
    same = compare_paired(np.array([0.2, 0.7]), np.array([0.2, 0.7]), samples=10)

    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(compare_paired(np.array([0.3]), np.array([0.2]), samples=10).p_value)


def test_other_users_are_refused() -> None:
    """Pairs need the same users on both sides."""
    with pytest.raises(ValueError, match="2 users against 1"):
        compare_paired(np.zeros(2), np.zeros(1))


def test_holm_by_hand() -> None:
    """The smallest of three times three, the next times two, and never less than before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
