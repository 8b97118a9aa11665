"""Whether one model is better than another: paired over users, by t-test and by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training.ranking import Doubles, Floats

_BOOTSTRAP_USERS_PER_CHUNK = 20_000_000


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference of one model to another over the same users.

    Attributes:
        difference: mean over users; above 0 when the first is better.
        low: lower end of the 95 % bootstrap interval.
        high: upper end.
        p_value: of the two-sided paired t-test; 1 when no user differs, NaN for one user.
        users: how many.
    """

    difference: float
    low: float
    high: float
    p_value: float
    users: int


def compare_paired(
    first: Floats,
    second: Floats,
    *,
    weights: Floats | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compare two models user by user.

    The unit is the user: impressions of one user are not independent. Seeds of one model are
    to be averaged per user beforehand; they are not further users.

    Args:
        first: [users], a figure per user, higher is better.
        second: [users], the other model's for the same users.
        weights: [users], of a weighted mean such as gAUC. The t-test is then on the users'
            contributions ``weight * difference``, whose mean is zero when the weighted one is.
        samples: bootstrap samples of users.
        seed: of the bootstrap.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} users against {len(second)}: the same, at least one, needed"
        )
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    weight = np.ones(len(difference)) if weights is None else np.asarray(weights, np.float64)
    means = bootstrap_means(difference, weight, samples=samples, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Paired(
        difference=float(np.average(difference, weights=weight)),
        low=float(low),
        high=float(high),
        p_value=_paired_t(difference * weight / weight.mean()),
        users=len(difference),
    )


def bootstrap_means(values: Doubles, weights: Doubles, *, samples: int, seed: int) -> Doubles:
    """Weighted means of ``samples`` draws of the users with replacement: [samples]."""
    rng = np.random.default_rng(seed)
    users, means = len(values), np.empty(samples)
    chunk = max(1, _BOOTSTRAP_USERS_PER_CHUNK // users)
    for begin in range(0, samples, chunk):
        size = min(chunk, samples - begin)
        drawn = rng.integers(0, users, (size, users))
        means[begin : begin + size] = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(
            axis=1
        )
    return means


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for having been many (Holm 1979): the chance of any false claim stays p."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, place in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return [float(p) for p in adjusted]


def _paired_t(difference: Doubles) -> float:
    """Two-sided p of a mean of zero."""
    if not difference.any():
        return 1.0
    if len(difference) == 1:
        return float("nan")
    spread = difference.std(ddof=1)
    if spread == 0:
        return 0.0
    t = difference.mean() / (spread / np.sqrt(len(difference)))
    return float(2 * stats.t.sf(abs(t), len(difference) - 1))
