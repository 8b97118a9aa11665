"""Metrics against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import (
    auc,
    evaluate_lists,
    evaluate_scores,
    expected_calibration_error,
    log_loss,
    mean_auc,
    predicted_over_observed,
    probability,
    reliability,
    user_auc,
    weighted_auc,
)

rows = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=60
)


def _brute(rows: list[tuple[int, bool, int]], *, tie: float) -> dict[int, tuple[float, int]]:
    """Every user's AUC by comparing each pair, with the user's impressions."""
    result = {}
    for user in {u for u, _, _ in rows}:
        positive = [s for u, c, s in rows if u == user and c]
        negative = [s for u, c, s in rows if u == user and not c]
        if positive and negative:
            wins = sum(1.0 if p > n else tie if p == n else 0.0 for p in positive for n in negative)
            pairs = len(positive) * len(negative)
            result[user] = (wins / pairs, len(positive) + len(negative))
    return result


@given(rows, st.booleans())
def test_user_auc_is_the_share_of_ordered_pairs(
    rows: list[tuple[int, bool, int]], strict: bool
) -> None:
    """Per user, plain mean and weighted mean are what comparing every pair gives."""
    users = np.array([u for u, _, _ in rows])
    labels = np.array([c for _, c, _ in rows], np.float32)
    scores = np.array([s for _, _, s in rows], np.float32)
    expected = _brute(rows, tie=0.0 if strict else 0.5)

    each = user_auc(users, labels, scores, strict=strict)

    assert each.users.tolist() == sorted(expected)
    np.testing.assert_allclose(each.auc, [expected[u][0] for u in sorted(expected)])
    assert each.impressions.tolist() == [expected[u][1] for u in sorted(expected)]
    if expected and not strict:
        values, weights = zip(*expected.values(), strict=True)
        assert mean_auc(users, labels, scores) == pytest.approx(np.mean(values))
        assert weighted_auc(users, labels, scores) == pytest.approx(
            np.average(values, weights=weights)
        )


def test_users_of_one_class_have_no_auc() -> None:
    """Nobody with both classes: not a number, rather than a made-up half."""
    assert math.isnan(mean_auc(np.array([1, 2]), np.array([1.0, 0.0]), np.array([1.0, 2.0])))


def test_auc_over_all_rows_ignores_users() -> None:
    """One clicked row above one of two others: half the pairs."""
    assert auc(np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 3.0])) == 0.5


def test_log_loss_of_logits() -> None:
    """A logit of zero costs ln 2; a certain and right one nothing, without overflow."""
    assert log_loss(np.array([1.0, 0.0]), np.array([0.0, 0.0])) == pytest.approx(math.log(2))
    assert log_loss(np.array([1.0]), np.array([1000.0])) == 0.0


def test_nan_scores_are_refused() -> None:
    """A score that is no number cannot be ranked."""
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        user_auc(np.array([1, 1]), np.array([1.0, 0.0]), np.array([np.nan, 0.0]))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-30, 30)), min_size=1, max_size=80),
    st.integers(1, 12),
)
def test_bins_of_reliability_hold_everything_once(rows: list[tuple[bool, int]], bins: int) -> None:
    """Bins cover all impressions in order of prediction; equal predictions share a bin."""
    labels = np.array([c for c, _ in rows], np.float32)
    logits = np.array([z / 10 for _, z in rows], np.float32)

    binned = reliability(labels, logits, bins=bins)

    weights = binned.impressions
    assert weights.sum() == len(rows)
    assert len(weights) <= bins
    assert (np.diff(binned.predicted) > 0).all()
    assert (binned.predicted * weights).sum() == pytest.approx(probability(logits).sum())
    assert (binned.observed * weights).sum() == pytest.approx(labels.sum())
    distinct = np.unique(logits)
    # A tie is never split, so where predictions are few each is a bin of its own.
    if len(distinct) == 1:
        assert len(weights) == 1


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.2 predicted and 0.5 clicked, 0.8 predicted and all clicked: 0.25 off."""
    logits = np.log(np.array([0.2, 0.2, 0.8, 0.8]) / np.array([0.8, 0.8, 0.2, 0.2]))
    labels = np.array([1.0, 0.0, 1.0, 1.0])

    assert expected_calibration_error(labels, logits, bins=2) == pytest.approx(0.25)
    assert predicted_over_observed(labels, logits) == pytest.approx(2.0 / 3.0)


def test_true_probabilities_are_calibrated() -> None:
    """Labels drawn from the predictions: little error, ratio near one; shifted ones are off."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1, 200_000)
    labels = (rng.random(200_000) < probability(logits)).astype(np.float32)

    assert expected_calibration_error(labels, logits) < 0.005
    assert predicted_over_observed(labels, logits) == pytest.approx(1.0, abs=0.01)
    assert expected_calibration_error(labels, logits + 1) > 0.1


def test_the_error_of_true_probabilities_is_what_chance_makes_it() -> None:
    """Over many draws, the ECE of the truth is sqrt(2 p (1 - p) bins / (pi n)) for one share p."""
    rng, share, count = np.random.default_rng(5), 0.3, 4000
    # Nearly one probability, told apart only so that there are bins.
    logits = math.log(share / (1 - share)) + rng.normal(0, 1e-4, count)
    errors = [
        expected_calibration_error((rng.random(count) < share).astype(np.float32), logits)
        for _ in range(300)
    ]

    expected = math.sqrt(2 * share * (1 - share) * 20 / (math.pi * count))
    assert np.mean(errors) == pytest.approx(expected, rel=0.03)


def test_no_click_at_all_has_no_finite_ratio() -> None:
    """Anything predicted where nothing was clicked is infinitely too much."""
    assert predicted_over_observed(np.zeros(3), np.zeros(3)) == math.inf


def test_evaluation_names_every_metric() -> None:
    """Scalars and lists come under the names that reports and manifests use."""
    users, labels = np.array([1, 1, 2, 2]), np.array([1.0, 0.0, 0.0, 1.0])
    logits = np.array([2.0, 1.0, 3.0, -1.0])

    scalars = evaluate_scores(users, labels, logits)
    lists = evaluate_lists(users, labels, logits, cutoffs=(1, 10))

    assert scalars["user_auc"] == scalars["gauc"] == 0.5
    assert lists["precision@1"] == lists["reference_precision@1"] == 0.5
    # Two impressions, one click each: of a list of ten the reference calls eight wrong.
    assert lists["precision@10"] == 0.5
    assert lists["reference_precision@10"] == pytest.approx(0.1)
    assert len(lists) == 16
