"""Every user's clicks as compressed sparse rows, and which of them a moment may see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store import IntArray
from training.impressions import Impressions

_ROWS_PER_SEARCH = 1 << 19


@dataclass(frozen=True, slots=True)
class ClickHistories:
    """Every user's clicks, one after another (compressed sparse rows).

    The vectorised twin of :func:`model_store.visible_history`, with ``str(item_id)`` as video id.

    Attributes:
        users: [u], ascending.
        offsets: [u + 1]; the clicks of user k are ``offsets[k]:offsets[k + 1]``.
        item_ids: clicked videos, by time within a user, ties by the id's digits as text.
        timestamps_ms: their times.
    """

    users: IntArray
    offsets: IntArray
    item_ids: IntArray
    timestamps_ms: IntArray

    @classmethod
    def from_impressions(cls, impressions: Impressions) -> ClickHistories:
        """Collect the clicked impressions."""
        clicked = np.flatnonzero(impressions.labels == 1)
        users, items = impressions.user_ids[clicked], impressions.item_ids[clicked]
        times = impressions.timestamps_ms[clicked]
        order = np.lexsort((_text_rank(items), times, users))
        users, items, times = users[order], items[order], times[order]
        same = (users[1:] == users[:-1]) & (items[1:] == items[:-1]) & (times[1:] == times[:-1])
        first = np.flatnonzero(np.r_[np.ones(min(1, len(users)), bool), ~same])
        users, items, times = users[first], items[first], times[first]
        distinct, starts = np.unique(users, return_index=True)
        return cls(distinct, np.r_[starts, len(users)].astype(np.int64), items, times)

    def without(self, held: npt.NDArray[np.bool_]) -> ClickHistories:
        """Leave out the clicks on some videos; ``held`` is [videos], true for those."""
        kept = ~held[self.item_ids]
        offsets = np.r_[0, np.cumsum(kept)][self.offsets]
        return ClickHistories(self.users, offsets, self.item_ids[kept], self.timestamps_ms[kept])

    def bounds(self, user_ids: IntArray, before_ms: IntArray | None) -> tuple[IntArray, IntArray]:
        """Return where each user's clicks begin, and end strictly before a moment.

        Only clicks of these users are read, so that a part of a large log costs its part.

        Args:
            user_ids: [n].
            before_ms: [n]; nothing sees all clicks.

        Returns:
            Two arrays [n], positions in ``item_ids``; 0 and 0 for a user without clicks.
        """
        starts, ends = np.zeros((2, len(user_ids)), np.int64)
        if not len(self.users):
            return starts, ends
        # In pieces: what a search needs at a time stays small however many rows are asked.
        for begin in range(0, len(user_ids), _ROWS_PER_SEARCH):
            rows = slice(begin, begin + _ROWS_PER_SEARCH)
            place = np.searchsorted(self.users, user_ids[rows]).clip(max=len(self.users) - 1)
            known = self.users[place] == user_ids[rows]
            first, last = self.offsets[place], self.offsets[place + 1]
            if before_ms is not None:
                last = self._before(first, last, before_ms[rows])
            # A history without clicks is the same one for every user.
            seen = known & (last > first)
            starts[rows], ends[rows] = np.where(seen, first, 0), np.where(seen, last, 0)
        return starts, ends

    def _before(self, first: IntArray, last: IntArray, before_ms: IntArray) -> IntArray:
        """Search every row's own range for the first click not before its moment."""
        low, high = first.copy(), last.copy()
        for _ in range(int((last - first).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            open_range = low < high
            clicked = self.timestamps_ms[np.where(open_range, middle, first)]
            earlier = open_range & (clicked < before_ms)
            low = np.where(earlier, middle + 1, low)
            high = np.where(open_range & ~earlier, middle, high)
        return low


def _text_rank(ids: IntArray) -> IntArray:
    """Rank ids as visible_history orders ties: by their text, not by their value."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    rank = np.empty(len(distinct), np.int64)
    rank[np.argsort(distinct.astype(str), kind="stable")] = np.arange(len(distinct))
    return rank[inverse]
