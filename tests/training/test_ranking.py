"""Top-K measures against brute force, in both conventions."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.ranking import MEASURES, TopK, top_k

Row = tuple[int, bool, int]

few = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2)), max_size=9)
many = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(-40, 40)), min_size=1, max_size=60
)
cutoffs = st.lists(st.integers(1, 12), min_size=1, max_size=3)


def _measured(rows: list[Row], cutoffs: list[int], convention: str) -> TopK:
    return top_k(
        np.array([u for u, _, _ in rows], np.int64),
        np.array([c for _, c, _ in rows], np.float32),
        np.array([s for _, _, s in rows], np.float32),
        cutoffs=cutoffs,
        convention=convention,  # type: ignore[arg-type]
    )


def _dcg(labels: list[bool]) -> float:
    return sum(1 / math.log2(place + 2) for place, clicked in enumerate(labels) if clicked)


def _one_order(labels: list[bool], k: int) -> tuple[float, float, float, float]:
    """A ranked list by its textbook definitions."""
    top, clicks = labels[:k], sum(labels)
    precision, recall = sum(top) / len(top), sum(top) / clicks
    f_score = 2 * precision * recall / (precision + recall) if sum(top) else 0.0
    return precision, recall, f_score, _dcg(top) / _dcg([True] * min(k, clicks))


def _orders(rows: list[Row]) -> list[list[bool]]:
    """Every order that sorting by score may give."""
    every = {
        tuple(indices)
        for indices in permutations(range(len(rows)))
        if all(rows[a][2] >= rows[b][2] for a, b in pairwise(indices))
    }
    return [[rows[i][1] for i in indices] for indices in every]


@given(few, cutoffs)
def test_standard_is_the_mean_over_the_orders_of_ties(rows: list[Row], cutoffs: list[int]) -> None:
    """Plain mean over users with a click, of the textbook value averaged over tied orders."""
    by_user = [[r for r in rows if r[0] == user] for user in {u for u, _, _ in rows}]
    # Seven factorial orders at most.
    by_user = [own[:5] for own in by_user if any(c for _, c, _ in own[:5])]
    kept = [row for own in by_user for row in own]

    measured = _measured(kept, cutoffs, "standard")

    for place, k in enumerate(cutoffs):
        each = [
            np.mean([_one_order(labels, k) for labels in _orders(own)], axis=0) for own in by_user
        ]
        expected = np.mean(each, axis=0) if each else [math.nan] * 4
        found = [getattr(measured, name)[place] for name in MEASURES]
        np.testing.assert_allclose(found, expected, atol=1e-12)


@given(many, cutoffs)
def test_reference_is_what_a_loop_over_users_gives(rows: list[Row], cutoffs: list[int]) -> None:
    """Weighted by impressions, precision over K, NDCG by the hits made, ties as in the file."""
    users = [[r for r in rows if r[0] == user] for user in sorted({u for u, _, _ in rows})]
    users = [own for own in users if 0 < sum(c for _, c, _ in own) < len(own)]

    measured = _measured(rows, cutoffs, "reference")

    for place, k in enumerate(cutoffs):
        precision, recall, ndcg = [], [], []
        for own in users:
            labels = [c for _, c, _ in sorted(own, key=lambda row: -row[2])]
            top = labels[:k]
            precision.append((sum(top) / k, len(own)))
            recall.append((sum(top) / sum(labels), len(own)))
            best = _dcg([True] * sum(top))
            ndcg.append((_dcg(top) / best if best else 0.0, len(top)))
        for name, pairs in (("precision", precision), ("recall", recall), ("ndcg", ndcg)):
            found = getattr(measured, name)[place]
            if not users:
                assert math.isnan(found)
                continue
            values, weights = zip(*pairs, strict=True)
            assert found == pytest.approx(np.average(values, weights=weights), abs=1e-7)


@given(many, st.randoms())
def test_standard_does_not_depend_on_the_order_of_the_file(rows: list[Row], random: object) -> None:
    """Shuffling a file moves nothing, ties or not."""
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    one, other = (_measured(r, [1, 3, 10], "standard") for r in (rows, shuffled))

    for name in MEASURES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


def test_the_conventions_part_where_they_say() -> None:
    """Of two clicks one is in the top three, last: the reference's NDCG forgives the other."""
    rows = [(1, False, 3), (1, False, 2), (1, True, 1), (1, True, 0)]

    standard, reference = (_measured(rows, [3, 8], name) for name in ("standard", "reference"))

    assert standard.ndcg[0] == pytest.approx(0.5 / (1 + 1 / math.log2(3)))
    assert reference.ndcg[0] == pytest.approx(0.5, abs=1e-6)
    # Four impressions: a list of eight holds four, and the reference still divides by eight.
    assert standard.precision.tolist() == pytest.approx([1 / 3, 1 / 2])
    assert reference.precision.tolist() == pytest.approx([1 / 3, 1 / 4])


def test_bad_input_is_refused() -> None:
    """A score that is no number cannot be ranked, nor a list of no video measured."""
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        top_k(np.array([1, 1]), np.array([1.0, 0.0]), np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="each must be 1 or more"):
        _measured([(1, True, 1)], [0], "standard")
