"""What a click log holds: sizes, click share, history lengths, time span, and what looks wrong.

Faults that make a log unusable stop the reading of it; those listed here do not, and are often
the reason why a model that trains well ranks badly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model_store import IntArray
from training.interactions import ClickLog, Features, Impressions

HISTORY_LENGTH = 160
"""Clicks that the paper's network sees at most."""

_SECONDS_NOT_MS = 100_000_000_000
"""Less than this is 1973 in milliseconds: the column is more likely in seconds."""

_ROWS_PER_CHUNK = 16_384


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One file of impressions.

    Attributes:
        impressions: rows.
        users: distinct.
        videos: distinct, of those in the feature file.
        listed_videos: rows of the feature file.
        categories: distinct.
        click_share: clicks per impression.
        sparsity: share of (user, video) pairs without an impression, as the paper's Table 1.
        first_ms: earliest timestamp.
        last_ms: latest.
        impressions_per_user: quantiles 0, 25, 50, 75, 95, 100 %.
        clicks_per_user: the same, over users with an impression.
    """

    impressions: int
    users: int
    videos: int
    listed_videos: int
    categories: int
    click_share: float
    sparsity: float
    first_ms: int
    last_ms: int
    impressions_per_user: tuple[float, ...]
    clicks_per_user: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LogSummary:
    """A whole log.

    Attributes:
        train: what is learnt from.
        test: what is scored, or nothing.
        feature_dim: width of a content feature.
        long_histories: share of training users with more clicks than the network sees.
        rankable_users: test users with clicked and other impressions; only they have an AUC.
        test_history: clicks before each test impression, quantiles as above; empty without test.
        faults: what looks wrong, one sentence each.
    """

    train: PartSummary
    test: PartSummary | None
    feature_dim: int
    long_histories: float
    rankable_users: int
    test_history: tuple[float, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distributions:
    """The paper's Fig. 3, and how much history there is to work with.

    Attributes:
        clicks_per_user: [training users], clicked training videos of each (Fig. 3a).
        videos_per_category: [categories], distinct training videos of each (Fig. 3b).
        test_history: [test impressions], clicks before each; empty without a test file.
        test_impressions_per_user: [test users]; how long a ranked list can be.
    """

    clicks_per_user: IntArray
    videos_per_category: IntArray
    test_history: IntArray
    test_impressions_per_user: IntArray


def inspect_log(log: ClickLog) -> tuple[LogSummary, Distributions]:
    """Summarise a log and say what looks wrong with it."""
    found = _distributions(log)
    test = None
    if log.test is not None and log.test_features is not None:
        test = _part(log.test, len(log.test_features))
    summary = LogSummary(
        train=_part(log.train, len(log.train_features)),
        test=test,
        feature_dim=log.feature_dim,
        long_histories=float((found.clicks_per_user > HISTORY_LENGTH).mean()),
        rankable_users=0 if log.test is None else _rankable(log.test),
        test_history=_quantiles(found.test_history) if len(found.test_history) else (),
        faults=tuple(_faults(log)),
    )
    return summary, found


def clicks_of_users(impressions: Impressions, users: IntArray) -> IntArray:
    """Count the clicks of each of these users: users [u], ascending -> [u]."""
    clicked = np.sort(impressions.user_ids[impressions.labels == 1])
    ends = np.searchsorted(clicked, users, side="right")
    return ends - np.searchsorted(clicked, users, side="left")


def _distributions(log: ClickLog) -> Distributions:
    train, test = log.train, log.test
    named, row = np.unique(train.item_ids, return_index=True)
    category = train.categories[row] if len(named) else np.zeros(0, np.int64)
    history = per_user = np.zeros(0, np.int64)
    if test is not None:
        histories = log.indexed()[1].histories
        starts, ends = histories.bounds(test.user_ids, test.timestamps_ms)
        history = ends - starts
        per_user = np.unique(test.user_ids, return_counts=True)[1]
    return Distributions(
        clicks_per_user=clicks_of_users(train, np.unique(train.user_ids)),
        videos_per_category=np.bincount(category, minlength=log.num_categories),
        test_history=history,
        test_impressions_per_user=per_user,
    )


def _part(rows: Impressions, listed: int) -> PartSummary:
    users, per_user = np.unique(rows.user_ids, return_counts=True)
    pairs = int(_first_of_each(rows.user_ids, rows.item_ids).sum())
    videos = len(np.unique(rows.item_ids))
    return PartSummary(
        impressions=len(rows),
        users=len(users),
        videos=videos,
        listed_videos=listed,
        categories=len(np.unique(rows.categories)),
        click_share=float(rows.labels.mean()),
        sparsity=1.0 - pairs / (len(users) * videos),
        first_ms=int(rows.timestamps_ms.min()),
        last_ms=int(rows.timestamps_ms.max()),
        impressions_per_user=_quantiles(per_user),
        clicks_per_user=_quantiles(clicks_of_users(rows, users)),
    )


def _first_of_each(*columns: IntArray) -> npt.NDArray[np.bool_]:
    """Mark one row of each distinct combination: [n]."""
    order = np.lexsort(columns)
    changes = [np.r_[True, column[order][1:] != column[order][:-1]] for column in columns]
    first = np.zeros(len(order), bool)
    first[order] = np.logical_or.reduce(changes)
    return first


def _quantiles(values: IntArray) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 0.95, 1]))


def _rankable(rows: Impressions) -> int:
    clicked = np.unique(rows.user_ids[rows.labels == 1])
    return len(np.intersect1d(clicked, rows.user_ids[rows.labels == 0]))


def _faults(log: ClickLog) -> list[str]:
    parts = [("train", log.train, log.train_features)]
    if log.test is not None and log.test_features is not None:
        parts.append(("test", log.test, log.test_features))
    faults = [f for name, rows, _ in parts for f in _row_faults(name, rows)]
    faults += [f for name, rows, table in parts for f in _video_faults(name, rows, table)]
    if log.test is not None:
        faults += _split_faults(log.train, log.test)
    return faults


def _row_faults(name: str, rows: Impressions) -> list[str]:
    key = (rows.user_ids, rows.item_ids, rows.timestamps_ms)
    shown = int(_first_of_each(*key).sum())
    labelled = int(_first_of_each(*key, rows.labels.astype(np.int64)).sum())
    clicks = int((rows.labels == 1).sum())
    times = rows.timestamps_ms
    checks = (
        (labelled < len(rows), f"{len(rows) - labelled:,} rows are exact repetitions"),
        (shown < labelled, f"{labelled - shown:,} impressions are both clicked and not clicked"),
        (clicks in {0, len(rows)}, f"{clicks:,} of {len(rows):,} impressions are clicked"),
        (times.min() == times.max(), "every impression has the same timestamp: no order is known"),
        (
            times.min() < times.max() < _SECONDS_NOT_MS,
            f"the latest timestamp is {int(times.max()):,}: milliseconds are expected",
        ),
    )
    return [f"{name}: {text}" for is_so, text in checks if is_so]


def _video_faults(name: str, rows: Impressions, features: Features) -> list[str]:
    pairs = _first_of_each(rows.item_ids, rows.categories)
    videos, categories = np.unique(rows.item_ids[pairs], return_counts=True)
    several = int((categories > 1).sum())
    zero, twins = _feature_faults(features)
    unseen = len(features) - len(videos)
    checks = (
        (several, f"{several:,} videos appear in several categories; the last row's is taken"),
        (zero, f"{zero:,} videos have an all-zero feature: their picture says nothing"),
        (twins, f"{twins:,} videos have the same feature as another: content cannot tell them"),
        (unseen, f"{unseen:,} videos of the feature file are in no impression"),
    )
    return [f"{name}: {text}" for count, text in checks if count]


def _feature_faults(features: Features) -> tuple[int, int]:
    """Count all-zero rows, and rows equal to an earlier one, in pieces to bound memory."""
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 2**63, features.shape[1], dtype=np.uint64) | np.uint64(1)
    zero, hashes = 0, np.empty(len(features), np.uint64)
    begins = range(0, len(features), _ROWS_PER_CHUNK)
    for begin in tqdm(begins, desc="features", leave=False, disable=None):
        # Adding zero makes one of the two floating-point zeros of the other.
        part = np.ascontiguousarray(features[begin : begin + _ROWS_PER_CHUNK], np.float32) + 0.0
        zero += int((~part.any(axis=1)).sum())
        bits = part.view(np.uint32).astype(np.uint64) + np.uint64(1)
        # Squared, or rows that differ by an exchange of near values might collide.
        hashes[begin : begin + len(part)] = (bits * bits * odd).sum(axis=1, dtype=np.uint64)
    return zero, len(hashes) - len(np.unique(hashes)) - max(0, zero - 1)


def _split_faults(train: Impressions, test: Impressions) -> list[str]:
    known = np.unique(train.user_ids)
    clickers = np.unique(train.user_ids[train.labels == 1])
    strangers = int((~np.isin(test.user_ids, known)).sum())
    unread = int((np.isin(test.user_ids, known) & ~np.isin(test.user_ids, clickers)).sum())
    early = int((test.timestamps_ms < train.timestamps_ms.max()).sum())
    one_class = len(np.unique(test.user_ids)) - _rankable(test)
    checks = (
        (strangers, "impressions are of users not in training"),
        (unread, "impressions are of users without a training click: no history"),
        (early, "impressions are earlier than the last training one"),
    )
    rows = len(test)
    faults = [f"test: {n:,} of {rows:,} {text} ({n / rows:.1%})" for n, text in checks if n]
    if one_class:
        users = len(np.unique(test.user_ids))
        faults.append(
            f"test: {one_class:,} of {users:,} users have clicks only or none: they have no AUC"
        )
    return faults
