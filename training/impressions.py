"""Impressions as columns: who was shown what, when, and whether it was clicked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Impressions:
    """Impressions, one array a column, n long; often memory-mapped.

    Attributes:
        user_ids: who saw the video.
        item_ids: row of the video in its feature file.
        categories: category of the video, 0 or more.
        labels: 1 for a click, else 0.
        timestamps_ms: when, milliseconds.
    """

    user_ids: IntArray
    item_ids: IntArray
    categories: IntArray
    labels: FloatArray
    timestamps_ms: IntArray

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, index: IntArray) -> Impressions:
        """Return the impressions at these positions."""
        return Impressions(*(column[index] for column in self.columns()))

    def part(self, begin: int, end: int) -> Impressions:
        """Return a range of the impressions; nothing is copied."""
        return Impressions(*(column[begin:end] for column in self.columns()))

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """All columns, in the order of the attributes."""
        return self.user_ids, self.item_ids, self.categories, self.labels, self.timestamps_ms


COLUMN_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Impressions))


def joined(parts: list[Impressions]) -> Impressions:
    """Put impressions one after another; none of no parts."""
    if not parts:
        whole = np.zeros(0, np.int64)
        return Impressions(whole, whole, whole, np.zeros(0, np.float32), whole)
    columns = zip(*(part.columns() for part in parts), strict=True)
    return Impressions(*(np.concatenate(column) for column in columns))
