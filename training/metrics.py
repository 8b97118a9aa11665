"""Metrics of ranking and probability as pure functions of arrays, no loop over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store import IntArray

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class UserAuc:
    """AUC of every user who has both clicked and other impressions.

    Attributes:
        users: [k], ascending.
        auc: [k], 0 to 1.
        impressions: [k], how many impressions of the user were ranked.
    """

    users: IntArray
    auc: npt.NDArray[np.float64]
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
    each = user_auc(user_ids, labels, scores, strict=strict)
    return float(each.auc.mean()) if len(each.auc) else float("nan")


def weighted_auc(user_ids: IntArray, labels: Floats, scores: Floats) -> float:
    """Per-user AUC weighted by the user's impressions (gAUC); NaN when none has both classes."""
    each = user_auc(user_ids, labels, scores)
    return float(np.average(each.auc, weights=each.impressions)) if len(each.auc) else float("nan")


def auc(labels: Floats, scores: Floats) -> float:
    """AUC over all impressions, whoever saw them."""
    return mean_auc(np.zeros(len(labels), np.int64), labels, scores)


def log_loss(labels: Floats, logits: Floats) -> float:
    """Mean negative log likelihood of the labels, from logits, in nats."""
    exact = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, exact) - labels * exact))


def evaluate_scores(user_ids: IntArray, labels: Floats, logits: Floats) -> dict[str, float]:
    """All of the above for one set of impressions, by name."""
    each = user_auc(user_ids, labels, logits)
    return {
        "user_auc": mean_auc(user_ids, labels, logits),
        "user_auc_strict": mean_auc(user_ids, labels, logits, strict=True),
        "gauc": weighted_auc(user_ids, labels, logits),
        "auc": auc(labels, logits),
        "log_loss": log_loss(labels, logits),
        "users": float(len(each.users)),
        "impressions": float(len(labels)),
    }
