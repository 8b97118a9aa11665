"""Whether a log holds enough to learn from and to validate on, asked before anything is trained."""

from __future__ import annotations

from training.config import RunConfig
from training.errors import DataError
from training.processes import Processes
from training.shards import Shards
from training.user_counts import UserCounts


def check_sufficient(config: RunConfig, shards: Shards, processes: Processes) -> None:
    """Refuse a log that a run could not learn from, or not be measured on.

    Raises:
        DataError: a split lacks clicks, non-clicks or users with both, a process has no step; the
            same on all processes.
    """
    rows = shards.validates
    validates = UserCounts.of([(rows.user_ids, rows.labels)])
    both = shards.counts.has_both.sum(), validates.has_both.sum()
    own = [total for each in (shards.counts, validates) for total in (each.shown, each.clicks)]
    *totals, pairs, ranked = processes.sum(*(column.sum() for column in own), *both)
    _check_labels(config, *totals)
    if not ranked:
        raise DataError(
            "no user of the validation split both clicked and passed over a video: there is no "
            f"gAUC to stop by; {_way_out(config, 'raise one')}"
        )
    _check_pairs(config, has_pairs=pairs > 0)
    if not shards.steps:
        raise DataError(
            f"one of {processes.count} processes has no {_learns_from(config)} among its users "
            "to learn from: start fewer"
        )


def _check_labels(
    config: RunConfig, rows: float, clicks: float, validation_rows: float, validation_clicks: float
) -> None:
    parts = (
        ("training", rows, clicks, "lower the first"),
        ("validation", validation_rows, validation_clicks, "raise one"),
    )
    for name, shown, clicked, advice in parts:
        if not 0 < clicked < shown:
            lacking = "clicks" if not clicked else "non-clicks"
            raise DataError(
                f"the {name} split of {shown:,.0f} impressions lacks {lacking}; "
                f"{_way_out(config, advice)}"
            )


def _check_pairs(config: RunConfig, *, has_pairs: bool) -> None:
    share = config.optim.pairwise_share
    said = "no user both clicked and passed over a video in training: there is no pair to learn"
    if config.model == "bpr" and not has_pairs:
        raise DataError(f"{said}, and bpr learns from nothing else: take another --model")
    if share and not has_pairs:
        raise DataError(f"{said} by optim.pairwise_share, which is {share}: set it to 0")


def _way_out(config: RunConfig, advice: str) -> str:
    data = config.data
    return (
        f"data.validation_item_share ({data.validation_item_share}) and "
        f"data.validation_time_share ({data.validation_time_share}) decide the split: {advice}"
    )


def _learns_from(config: RunConfig) -> str:
    if config.model == "bpr":
        return "pair of a click and a video passed over"
    is_drawn = config.data.negatives_per_positive is not None
    return "click to draw negatives beside" if is_drawn else "impression"
