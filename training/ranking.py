"""Precision, recall, F and NDCG of each user's top K, in two named conventions.

``standard``
    The list of a user is the K best of the impressions that the user has, so it holds
    min(K, n) videos. Means are plain means over users with at least one click. Tied scores
    count as their mean over all orders, so that no metric depends on the order of a file.
    NDCG divides by the best possible DCG: of min(K, clicks) hits.

``reference``
    What the authors' code computes. Users without both classes are left out. Precision divides
    by K even where a user has fewer impressions. Precision and recall are weighted by the
    user's impressions n, NDCG by min(K, n). NDCG divides by the best DCG of the *hits that were
    made*, so it measures their order only, and is not comparable with the standard one. Tied
    scores stay in the order of the file. The F-score, for which that code has nothing, is the
    harmonic mean of the two averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from model_store import IntArray

Floats: TypeAlias = npt.NDArray[np.floating]
Doubles: TypeAlias = npt.NDArray[np.float64]

CUTOFFS = tuple(range(10, 101, 10))
"""The K of the paper's Fig. 4."""

MEASURES = ("precision", "recall", "f_score", "ndcg")

Convention = Literal["standard", "reference"]


@dataclass(frozen=True, slots=True)
class TopK:
    """Averages over users at each cutoff, all 0 to 1; NaN where no user counts.

    Attributes:
        cutoffs: K, in the order asked for.
        precision: [len(cutoffs)], share of a list that was clicked.
        recall: share of a user's clicks that are in the list.
        f_score: harmonic mean of the two.
        ndcg: discounted gain, log2, over the best possible one.
    """

    cutoffs: tuple[int, ...]
    precision: Doubles
    recall: Doubles
    f_score: Doubles
    ndcg: Doubles


def top_k(
    user_ids: IntArray,
    labels: Floats,
    scores: Floats,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    convention: Convention = "standard",
) -> TopK:
    """Measure every user's best-scored impressions.

    Args:
        user_ids: [n].
        labels: [n], 1 for a click, else 0.
        scores: [n], higher ranks first.
        cutoffs: list lengths K, each at least 1.
        convention: which one, as the module says.

    Raises:
        ValueError: a score is NaN, or a cutoff below 1.
    """
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    if any(k < 1 for k in cutoffs):
        raise ValueError(f"cutoffs are {list(cutoffs)}, each must be 1 or more")
    ranked = _rank(user_ids, labels, scores, mean_of_ties=convention == "standard")
    summed = _sum_lists(ranked, np.array(cutoffs, np.int64))
    average = _standard if convention == "standard" else _reference
    return TopK(tuple(cutoffs), *average(ranked, summed))


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Impressions by user, best first: gain and place of each row, size and clicks of each user."""

    gain: Doubles
    place: IntArray
    first: IntArray
    count: IntArray
    clicks: Doubles


@dataclass(frozen=True, slots=True)
class _Lists:
    """Sums over each user's list at each cutoff, [users, cutoffs]."""

    cutoffs: IntArray
    length: IntArray
    hits: Doubles
    dcg: Doubles


def _rank(user_ids: IntArray, labels: Floats, scores: Floats, *, mean_of_ties: bool) -> _Ranked:
    order = np.lexsort((-scores, user_ids))
    users, gain = user_ids[order], (labels[order] == 1).astype(np.float64)
    new_user = np.r_[True, users[1:] != users[:-1]][: len(users)]
    first = np.flatnonzero(new_user)
    count = np.diff(np.r_[first, len(users)])
    clicks = np.add.reduceat(gain, first) if len(users) else gain
    if mean_of_ties and len(users):
        # All measures are linear in the labels of a list, so the mean label of a tie gives
        # exactly the mean of the measure over the orders of the tie.
        scores = scores[order]
        new_tie = new_user | np.r_[True, scores[1:] != scores[:-1]]
        begins = np.flatnonzero(new_tie)
        size = np.diff(np.r_[begins, len(users)])
        gain = np.repeat(np.add.reduceat(gain, begins) / size, size)
    place = np.arange(len(users)) - np.repeat(first, count)
    return _Ranked(gain, place, first, count, clicks)


def _sum_lists(ranked: _Ranked, cutoffs: IntArray) -> _Lists:
    length = np.minimum(cutoffs, ranked.count[:, None])
    ends = ranked.first[:, None] + length
    hits, dcg = (
        (total := np.r_[0.0, np.cumsum(gain)])[ends] - total[ranked.first][:, None]
        for gain in (ranked.gain, ranked.gain * _discount(ranked.place))
    )
    return _Lists(cutoffs, length, hits, dcg)


def _standard(ranked: _Ranked, lists: _Lists) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    counted = ranked.clicks > 0
    hits, length = lists.hits[counted], lists.length[counted]
    clicks = ranked.clicks[counted][:, None]
    best = _best_dcg(np.minimum(lists.cutoffs, clicks))
    each = (hits / length, hits / clicks, 2 * hits / (length + clicks), lists.dcg[counted] / best)
    precision, recall, f_score, ndcg = (_mean(values, np.ones(len(values))) for values in each)
    return precision, recall, f_score, ndcg


def _reference(ranked: _Ranked, lists: _Lists) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    counted = (ranked.clicks > 0) & (ranked.clicks < ranked.count)
    hits, weight = lists.hits[counted], ranked.count[counted].astype(np.float64)
    precision = _mean(hits / lists.cutoffs, weight)
    recall = _mean(hits / ranked.clicks[counted][:, None], weight)
    # Where nothing was hit both are zero; the reference adds a little to the divisor.
    ordered = lists.dcg[counted] / (_best_dcg(hits) + 1e-8)
    ndcg = _mean(ordered, lists.length[counted].astype(np.float64))
    both = precision + recall
    f_score = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both != 0)
    return precision, recall, f_score, ndcg


def _discount(place: IntArray) -> Doubles:
    discount: Doubles = 1.0 / np.log2(place + 2.0)
    return discount


def _best_dcg(hits: Doubles) -> Doubles:
    whole = np.rint(hits).astype(np.int64)
    total = np.r_[0.0, np.cumsum(_discount(np.arange(int(whole.max(initial=0)))))]
    best: Doubles = total[whole]
    return best


def _mean(values: Doubles, weights: Doubles) -> Doubles:
    """Average over users: values [users, cutoffs], weights [users] or the same shape."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    mean: Doubles = np.average(
        values, axis=0, weights=np.broadcast_to(weights.reshape(len(values), -1), values.shape)
    )
    return mean
