"""Metrics of ranking and probability as pure functions of arrays, no loop over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_store import IntArray
from training.ranking import CUTOFFS, MEASURES, Convention, Doubles, Floats, top_k

RELIABILITY_BINS = 20


@dataclass(frozen=True, slots=True)
class UserAuc:
    """AUC of every user who has both clicked and other impressions.

    Attributes:
        users: [k], ascending.
        auc: [k], 0 to 1.
        impressions: [k], how many impressions of the user were ranked.
    """

    users: IntArray
    auc: Doubles
    impressions: IntArray


def user_auc(
    user_ids: IntArray, labels: Floats, scores: Floats, *, strict: bool = False
) -> UserAuc:
    """Rank each user's impressions by score; users with one class only are left out.

    Args:
        user_ids: [n].
        labels: [n], 1 for a click, else 0.
        scores: [n], higher ranks first.
        strict: a tie counts 0, as eq. 11 of the paper is written, instead of one half.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    order = np.lexsort((scores, user_ids))
    users, scores, positive = user_ids[order], scores[order], labels[order] == 1
    new_user = np.r_[True, users[1:] != users[:-1]][: len(users)]
    new_tie = new_user | np.r_[True, scores[1:] != scores[:-1]][: len(users)]
    user = np.cumsum(new_user) - 1
    negatives_before = np.cumsum(~positive) - ~positive
    user_first = np.flatnonzero(new_user)
    tie_first = np.flatnonzero(new_tie)[np.cumsum(new_tie) - 1]
    below = negatives_before[tie_first] - negatives_before[user_first][user]
    tied = (
        np.add.reduceat(~positive, np.flatnonzero(new_tie), dtype=np.int64)[np.cumsum(new_tie) - 1]
        if len(users)
        else below
    )
    wins = np.where(positive, below + (0.0 if strict else 0.5) * tied, 0.0)
    count = np.bincount(user)
    clicks = np.bincount(user, positive)
    pairs = clicks * (count - clicks)
    both = pairs > 0
    total = np.bincount(user, wins)[both] / pairs[both]
    return UserAuc(users[user_first][both], total, count[both])


def mean_auc(user_ids: IntArray, labels: Floats, scores: Floats, *, strict: bool = False) -> float:
    """Per-user AUC, plain mean over users (eq. 11); NaN when no user has both classes."""
    return _mean(user_auc(user_ids, labels, scores, strict=strict))


def weighted_auc(user_ids: IntArray, labels: Floats, scores: Floats) -> float:
    """Per-user AUC weighted by the user's impressions (gAUC); NaN when none has both classes."""
    return _weighted_mean(user_auc(user_ids, labels, scores))


def auc(labels: Floats, scores: Floats) -> float:
    """AUC over all impressions, whoever saw them."""
    return mean_auc(np.zeros(len(labels), np.int64), labels, scores)


def log_loss(labels: Floats, logits: Floats) -> float:
    """Mean negative log likelihood of the labels, from logits, in nats."""
    exact = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, exact) - labels * exact))


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed, over bins of like predictions.

    Attributes:
        predicted: [b], mean predicted probability of a bin, ascending.
        observed: [b], share of clicks in it.
        impressions: [b], its size.
    """

    predicted: Doubles
    observed: Doubles
    impressions: IntArray


def reliability(labels: Floats, logits: Floats, *, bins: int = RELIABILITY_BINS) -> Reliability:
    """Bin impressions by predicted probability, about equally many in each bin.

    Bins of equal width would leave most of them empty: click probabilities are small. Equal
    predictions share a bin, so there may be fewer bins than asked for.

    Args:
        labels: [n], 1 for a click, else 0.
        logits: [n].
        bins: how many, at most.
    """
    predicted = probability(logits)
    edges = np.quantile(predicted, np.arange(1, bins) / bins, method="inverted_cdf")
    place = np.searchsorted(edges, predicted, side="left")
    count = np.bincount(place, minlength=bins)
    kept = count > 0
    sums = (np.bincount(place, values, minlength=bins)[kept] for values in (predicted, labels))
    mean_predicted, mean_observed = (total / count[kept] for total in sums)
    return Reliability(mean_predicted, mean_observed, count[kept])


def expected_calibration_error(
    labels: Floats, logits: Floats, *, bins: int = RELIABILITY_BINS
) -> float:
    """How far predictions are from what happened: mean |predicted - observed| over bins, 0 to 1.

    Bins as in :func:`reliability`, weighted by their impressions (Guo et al. 2017, with bins of
    equal mass).
    """
    binned = reliability(labels, logits, bins=bins)
    gap = np.abs(binned.predicted - binned.observed)
    return float(np.average(gap, weights=binned.impressions))


def predicted_over_observed(labels: Floats, logits: Floats) -> float:
    """Predicted clicks per observed click, 1 at best; infinite when nothing was clicked."""
    clicks = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(probability(logits))) / clicks if clicks else float("inf")


def probability(logits: Floats) -> Doubles:
    """Turn logits into probabilities, in double precision and without overflow."""
    exact = np.asarray(logits, np.float64)
    result: Doubles = np.exp(-np.logaddexp(0.0, -exact))
    return result


def evaluate_scores(user_ids: IntArray, labels: Floats, logits: Floats) -> dict[str, float]:
    """All of the above for one set of impressions, by name."""
    each = user_auc(user_ids, labels, logits)
    return {
        "user_auc": _mean(each),
        "user_auc_strict": mean_auc(user_ids, labels, logits, strict=True),
        "gauc": _weighted_mean(each),
        "auc": auc(labels, logits),
        "log_loss": log_loss(labels, logits),
        "ece": expected_calibration_error(labels, logits),
        "predicted_over_observed": predicted_over_observed(labels, logits),
        "users": float(len(each.users)),
        "impressions": float(len(labels)),
    }


def evaluate_lists(
    user_ids: IntArray,
    labels: Floats,
    scores: Floats,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """Top-K measures in both conventions: ``ndcg@10`` is standard, ``reference_ndcg@10`` not."""
    named: dict[str, float] = {}
    conventions: tuple[tuple[Convention, str], ...] = (
        ("standard", ""),
        ("reference", "reference_"),
    )
    for convention, prefix in conventions:
        lists = top_k(user_ids, labels, scores, cutoffs=cutoffs, convention=convention)
        for measure in MEASURES:
            values = getattr(lists, measure)
            named |= {
                f"{prefix}{measure}@{k}": float(v) for k, v in zip(cutoffs, values, strict=True)
            }
    return named


def _mean(each: UserAuc) -> float:
    return float(each.auc.mean()) if len(each.auc) else float("nan")


def _weighted_mean(each: UserAuc) -> float:
    return float(np.average(each.auc, weights=each.impressions)) if len(each.auc) else float("nan")
