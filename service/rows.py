"""Encoded videos: what the model makes of a video, cached per process.

A cache belongs to one open version. A row is dropped once the change log names its video; one
that was read before that moment and arrives after it is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, Layout, OpenVersion
from service.state import Video

BoolArray = npt.NDArray[np.bool_]

_DROPS_REMEMBERED: Final = 100_000


class Read(Protocol):
    """What a look at Redis brings."""

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
        self.generation = 0
        """Rises with every drop."""
        self._capacity = capacity
        # Memory is touched only where rows are written.
        self._table = np.empty((capacity, opened.manifest.layout.row_dim), np.float32)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []
        self._dropped: dict[str, int] = {}
        self._all_dropped = 0

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

    def drop(self, video_ids: Sequence[str] | None) -> None:
        """Forget rows; ``None`` forgets all."""
        self.generation += 1
        if video_ids is None or len(self._dropped) > _DROPS_REMEMBERED:
            self._slots.clear()
            self._free.clear()
            self._dropped.clear()
            self._all_dropped = self.generation
            return
        for video_id in video_ids:
            self._dropped[video_id] = self.generation
            slot = self._slots.pop(video_id, None)
            if slot is not None:
                self._free.append(slot)

    def put(self, rows: Mapping[str, FloatArray], *, generation: int) -> None:
        """Keep rows of videos that were read when the cache was at ``generation``."""
        if self._all_dropped > generation:
            return
        for video_id, row in rows.items():
            if self._dropped.get(video_id, 0) > generation:
                continue
            slot = self._slots.pop(video_id, None)
            if slot is None:
                slot = self._slot()
            self._slots[video_id] = slot
            self._table[slot] = row

    def _slot(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._slots) >= self._capacity:
            return self._slots.popitem(last=False)[1]
        return len(self._slots)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[ReadT]):
    """Rows of N videos, in part still to be encoded.

    Attributes:
        video_ids: [N].
        rows: [N, R], zeros where ``found`` is false.
        found: [N], the row came from the cache.
        fresh: videos to encode, by id.
        generation: of the cache, when the fresh ones were read.
        read: what Redis said.
    """

    video_ids: Sequence[str]
    rows: FloatArray
    found: BoolArray
    fresh: dict[str, Video]
    generation: int
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
    """Find videos in the cache, and the others with one call of ``read``."""
    generation = cache.generation
    rows, found = cache.gather(video_ids)
    absent = (i for i, here in zip(video_ids, found.tolist(), strict=True) if not here)
    missing = list(dict.fromkeys(absent))
    answer = await read(missing)
    width = cache.opened.manifest.layout.feature_dim
    pairs = zip(missing, answer.videos, strict=True)
    fresh = {i: video for i, video in pairs if video is not None and len(video.features) == width}
    return Resolved(video_ids, rows, found, fresh, generation, answer)


def encode(opened: OpenVersion, videos: Sequence[Video]) -> FloatArray:
    """Encode videos: [N, R]. A category that the model does not know becomes "unknown"."""
    layout: Layout = opened.manifest.layout
    if not videos:
        return np.zeros((0, layout.row_dim), np.float32)
    unknown = layout.num_categories
    categories = [v.category if 0 <= v.category < unknown else unknown for v in videos]
    features = np.stack([v.features for v in videos])
    return opened.model.encode_videos(features, np.array(categories, np.int64))
