"""What is learnt from and what validates, decided without looking at more rows than one must."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store import IntArray
from training.config import RunConfig
from training.impressions import Impressions, joined
from training.processes import ALONE, Processes

_ROWS_PER_PASS = 1 << 20


@dataclass(frozen=True, slots=True)
class Split:
    """Validation is on videos that are never trained on, in the last part of the log's time.

    It is the question that the model is asked once it serves. Neither half knows of the test file.

    Attributes:
        held: [videos], those that are not learnt from.
        late_ms: only impressions from here on validate.
    """

    held: npt.NDArray[np.bool_]
    late_ms: int

    @classmethod
    def of(
        cls,
        config: RunConfig,
        named: npt.NDArray[np.bool_],
        rows: Impressions,
        processes: Processes = ALONE,
    ) -> Split:
        """Draw the videos that are held out, and find the moment after which they validate.

        Args:
            config: seed and shares.
            named: [videos], those that the log names.
            rows: this process's impressions.
            processes: who has the others.
        """
        items = np.flatnonzero(named)
        rng = np.random.default_rng(config.seed)
        held = np.zeros(len(named), bool)
        held[rng.permutation(items)[: int(len(items) * config.data.validation_item_share)]] = True
        share = 1 - config.data.validation_time_share
        return cls(held, _quantile(rows.timestamps_ms, share, processes))

    def learns(self, rows: Impressions) -> Impressions:
        """Return those of the impressions that are learnt from."""
        return rows.take(np.flatnonzero(~self.held[rows.item_ids]))

    def validates(self, rows: Impressions) -> Impressions:
        """Return those of the impressions that validate; reads a piece at a time."""
        return joined(
            [
                part.take(
                    np.flatnonzero(self.held[part.item_ids] & (part.timestamps_ms >= self.late_ms))
                )
                for part in pieces(rows)
            ]
        )


def pieces(rows: Impressions) -> Iterator[Impressions]:
    """Cut a table into ranges that a pass may hold copies of."""
    for begin in range(0, len(rows), _ROWS_PER_PASS):
        yield rows.part(begin, min(begin + _ROWS_PER_PASS, len(rows)))


def _quantile(values: IntArray, share: float, processes: Processes) -> int:
    """Find the least value that at least this share of all processes' values is not above.

    By bisection, counting: no process sorts, or sees another one's values.
    """
    count, low, high = len(values), int(values.min()), int(values.max())
    (total,) = processes.sum(count)
    low, high = processes.lowest(low), -processes.lowest(-high)
    wanted = math.ceil(share * (total - 1)) + 1
    while low < high:
        middle = (low + high) // 2
        below = sum(
            int(np.count_nonzero(values[begin : begin + _ROWS_PER_PASS] <= middle))
            for begin in range(0, count, _ROWS_PER_PASS)
        )
        if processes.sum(below)[0] >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
