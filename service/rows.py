"""Encoded videos: what the model makes of a video, cached per process.

A cache belongs to one open version. Redis counts the changes of known videos, every read
brings the counter along, and a cache that is behind it is emptied: a row is never older
than the newest acknowledged ``PUT /videos``, whichever worker took it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, Layout, OpenVersion
from service.state import Counters, Video

BoolArray = npt.NDArray[np.bool_]


class Read(Protocol):
    """What a look at Redis brings: videos, and the counters at that moment."""

    @property
    def counters(self) -> Counters:
        """Counters of the video table."""

    @property
    def videos(self) -> list[Video | None]:
        """The videos asked for, in order."""


ReadT = TypeVar("ReadT", bound=Read)


class RowCache:
    """Rows of the videos used last, for one version. Not for several threads.

    Args:
        opened: the version that encodes.
        capacity: rows kept.
    """

    def __init__(self, opened: OpenVersion, capacity: int) -> None:
        self.opened = opened
        self._capacity = capacity
        # Memory is touched only where rows are written.
        self._table = np.empty((capacity, opened.manifest.layout.row_dim), np.float32)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._changed: int | None = None

    def gather(self, video_ids: Sequence[str]) -> tuple[FloatArray, BoolArray]:
        """Copy rows [N, R] and say which of them were here [N]; the others are zeros."""
        rows = np.zeros((len(video_ids), self._table.shape[1]), np.float32)
        slots = np.array([self._slots.get(video_id, -1) for video_id in video_ids], np.int64)
        found: BoolArray = slots >= 0
        rows[found] = self._table[slots[found]]
        for video_id in video_ids:
            if video_id in self._slots:
                self._slots.move_to_end(video_id)
        return rows, found

    def sync(self, counters: Counters) -> bool:
        """Return whether what was gathered still holds; empty the cache where it does not."""
        if self._changed is None or self._changed == counters.changed:
            self._changed = counters.changed
            return True
        self._slots.clear()
        self._changed = counters.changed
        return False

    def put(self, rows: Mapping[str, FloatArray], counters: Counters) -> None:
        """Keep rows of videos that were read together with ``counters``."""
        if self._changed != counters.changed:
            return
        for video_id, row in rows.items():
            slot = self._slots.pop(video_id, None)
            if slot is None:
                full = len(self._slots) >= self._capacity
                slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._slots[video_id] = slot
            self._table[slot] = row


@dataclass(frozen=True, slots=True)
class Resolved(Generic[ReadT]):
    """Rows of N videos, in part still to be encoded.

    Attributes:
        video_ids: [N].
        rows: [N, R], zeros where ``found`` is false.
        found: [N], the row came from the cache.
        fresh: videos to encode, by id.
        read: what Redis said.
    """

    video_ids: Sequence[str]
    rows: FloatArray
    found: BoolArray
    fresh: dict[str, Video]
    read: ReadT

    def complete(self, encoded: Mapping[str, FloatArray]) -> tuple[FloatArray, BoolArray]:
        """Fill in encoded rows: [N, R], and which are known [N]."""
        rows, known = self.rows.copy(), self.found.copy()
        for index in np.flatnonzero(~known).tolist():
            row = encoded.get(self.video_ids[index])
            if row is not None:
                rows[index], known[index] = row, True
        return rows, known


async def resolve(
    cache: RowCache,
    video_ids: Sequence[str],
    read: Callable[[Sequence[str]], Awaitable[ReadT]],
) -> Resolved[ReadT]:
    """Find videos in the cache, and the others with one call of ``read``.

    There is a second call only where the cache turns out to be behind.
    """
    rows, found = cache.gather(video_ids)
    missing = _missing(video_ids, found)
    answer = await read(missing)
    if not cache.sync(answer.counters):
        # Everything is read again, so nothing old can be among it.
        rows[:], found[:] = 0.0, False
        missing = _missing(video_ids, found)
        answer = await read(missing)
        cache.sync(answer.counters)
    width = cache.opened.manifest.layout.feature_dim
    pairs = zip(missing, answer.videos, strict=True)
    fresh = {i: video for i, video in pairs if video is not None and len(video.features) == width}
    return Resolved(video_ids, rows, found, fresh, answer)


def encode(opened: OpenVersion, videos: Sequence[Video]) -> FloatArray:
    """Encode videos: [N, R]. A category that the model does not know becomes "unknown"."""
    layout: Layout = opened.manifest.layout
    if not videos:
        return np.zeros((0, layout.row_dim), np.float32)
    unknown = layout.num_categories
    categories = [v.category if 0 <= v.category < unknown else unknown for v in videos]
    features = np.stack([v.features for v in videos])
    return opened.model.encode_videos(features, np.array(categories, np.int64))


def _missing(video_ids: Sequence[str], found: BoolArray) -> list[str]:
    absent = (i for i, here in zip(video_ids, found.tolist(), strict=True) if not here)
    return list(dict.fromkeys(absent))
