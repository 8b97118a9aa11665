"""Impressions as columns: who was shown what, when, and whether it was clicked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, IntArray

# Odd: a product with it carries every bit of a column upwards and loses none.
_MIXER = np.uint64(0x9E3779B97F4A7C15)


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

    def digest(self) -> int:
        """Return a number that tells these impressions from others; that of two parts is the sum."""
        mixed = np.zeros(len(self), np.uint64)
        for column in self.columns():
            mixed = (mixed ^ column.astype(np.int64).view(np.uint64)) * _MIXER
            mixed ^= mixed >> np.uint64(29)
        # Once more, for the last column, and its upper bits, which hang on all the others.
        return int(((mixed * _MIXER) >> np.uint64(40)).sum())

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
