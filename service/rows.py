"""Encoded videos: what the model makes of a video, cached per process.

A cache belongs to one open version. A row is dropped once the change log names its video; one
that was read before that moment and arrives after it is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, repeat
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, Layout, Model, OpenVersion
from service import metrics
from service.fingerprints import Fingerprints
from service.state import Video
from service.steps import STEPS

SlotArray = npt.NDArray[np.int64]
"""[N] where a row is: 0 and above in the cache, -1 nowhere, -2 - i in place i of what is new."""

_HIT: Final = metrics.ROWS.labels("hit")
_MISS: Final = metrics.ROWS.labels("miss")
_DROPS_REMEMBERED: Final = 100_000
_SAMPLE: Final = 2_048
_EVICTED_SHARE: Final = 8


class Read(Protocol):
    """What a look at Redis brings."""

    @property
    def videos(self) -> list[Video | None]:
        """The videos asked for, in order."""


ReadT = TypeVar("ReadT", bound=Read)


class RowCache:
    """Rows of the videos used last, for one version. Not for several threads.

    A reader that hands slots to another thread pins them: a pinned slot may be dropped, but its
    bytes stay as they are until the reader is done.

    Args:
        opened: the version that encodes.
        capacity_bytes: of rows kept, at least one row.
    """

    def __init__(self, opened: OpenVersion, capacity_bytes: int) -> None:
        self.opened = opened
        self.generation = 0
        """Rises with every drop."""
        width = opened.manifest.layout.row_dim
        self.capacity = max(1, capacity_bytes // (4 * width))
        """How many rows there is room for."""
        # Memory is touched only where rows are written.
        self.table: FloatArray = np.empty((self.capacity, width), np.float32)
        """[capacity, R]"""
        self._used = np.zeros(self.capacity, np.int64)
        self._owners: list[str | None] = []
        self._slots: dict[str, int] = {}
        self._fingerprints = Fingerprints(self.capacity)
        self._free: deque[tuple[int, int]] = deque()
        self._ticks = count(1)
        self._pins: dict[int, None] = {}
        self._dropped: dict[str, int] = {}
        self._all_dropped = 0
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._slots)

    def look_up(self, video_ids: Sequence[str]) -> SlotArray:
        """Return the slots of videos [N], -1 for what is not here; those here count as used."""
        return self._looked_up(video_ids)[0]

    def look_all_up(self, video_ids: Sequence[str]) -> SlotArray | None:
        """Return the slots of videos [N] that are all here, or nothing; those here count as used."""
        slots, found = self._looked_up(video_ids)
        return slots if found == len(slots) else None

    def _looked_up(self, video_ids: Sequence[str]) -> tuple[SlotArray, int]:
        """Return the slots and how many are not -1."""
        if len(video_ids) < STEPS.many:
            known = map(self._slots.get, video_ids, repeat(-1))
            slots = np.fromiter(known, np.int64, count=len(video_ids))
        else:
            slots, found = self._fingerprints.find(video_ids)
            if found == len(slots):
                self._used[slots] = next(self._ticks)
                return slots, found
            absent = np.flatnonzero(slots < 0).tolist()
            slots[absent] = [self._slots.get(video_ids[place], -1) for place in absent]
        here = slots[slots >= 0]
        self._used[here] = next(self._ticks)
        return slots, len(here)

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep the bytes of slots that are looked up in here until it is left."""
        tick = next(self._ticks)
        self._pins[tick] = None
        try:
            yield
        finally:
            del self._pins[tick]

    def drop(self, video_ids: Sequence[str] | None) -> None:
        """Forget rows; ``None`` forgets all."""
        self.generation += 1
        if video_ids is None or len(self._dropped) > _DROPS_REMEMBERED:
            self._dropped.clear()
            self._all_dropped = self.generation
            video_ids = list(self._slots)
        else:
            self._dropped.update(zip(video_ids, repeat(self.generation)))
        for video_id in video_ids:
            slot = self._slots.pop(video_id, None)
            if slot is not None:
                self._fingerprints.drop(video_id)
                self._release(slot)

    def drop_held(self, video_ids: Sequence[str]) -> None:
        """Forget those of these rows that are here.

        For videos that were not registered a moment ago: nobody is reading what they were.
        """
        held = [video_id for video_id in video_ids if video_id in self._slots]
        if held:
            self.drop(held)

    def put(self, rows: Mapping[str, FloatArray], *, generation: int) -> None:
        """Keep rows of videos that were read when the cache was at ``generation``."""
        if self._all_dropped > generation:
            return
        tick = next(self._ticks)
        for video_id, row in rows.items():
            if video_id in self._slots or self._dropped.get(video_id, 0) > generation:
                continue
            slot = self._take()
            if slot is None:
                # All there is, is being read: the next request may find room.
                return
            if not self._fingerprints.add(video_id, slot):
                # It would be taken for another, once in ages: it is encoded again each time.
                self._release(slot)
                continue
            self.table[slot] = row
            self._used[slot] = tick
            self._owners[slot] = video_id
            self._slots[video_id] = slot
        metrics.CACHED_ROWS.set(len(self._slots))

    def recent(self, limit: int) -> list[str]:
        """Return the videos used last, newest first."""
        places = np.argsort(-self._used[: len(self._owners)], kind="stable").tolist()
        owners = (self._owners[place] for place in places)
        return [owner for owner in owners if owner is not None][:limit]

    def _release(self, slot: int) -> None:
        self._owners[slot] = None
        self._used[slot] = 0
        self._free.append((next(self._ticks), slot))

    def _take(self) -> int | None:
        if not self._free and len(self._owners) < self.capacity:
            self._owners.append(None)
            return len(self._owners) - 1
        if not self._free:
            self._evict()
        # Whoever pinned before a slot was freed may still read it.
        oldest_reader = next(iter(self._pins), None)
        freed, slot = self._free[0]
        if oldest_reader is not None and oldest_reader < freed:
            return None
        self._free.popleft()
        return slot

    def _evict(self) -> None:
        # The least recently used of a sample, as Redis does it: exact for a small cache.
        total = len(self._owners)
        sample = (
            np.arange(total) if total <= _SAMPLE else self._rng.integers(0, total, size=_SAMPLE)
        )
        oldest = sample[np.argsort(self._used[sample], kind="stable")]
        for slot in oldest[: max(1, len(sample) // _EVICTED_SHARE)].tolist():
            owner = self._owners[slot]
            if owner is not None:
                del self._slots[owner]
                self._fingerprints.drop(owner)
                self._release(slot)


class RowCaches:
    """Row caches by version: of the present one, and of one that is to answer soon.

    Args:
        capacity_bytes: of each.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._present: RowCache | None = None
        self._next: RowCache | None = None
        self._former: WeakKeyDictionary[Model, ref[RowCache]] = WeakKeyDictionary()

    def of(self, opened: OpenVersion) -> RowCache:
        """Return the cache of a version, and let the one of the version before go.

        What began with that version may still ask for it. It gets the same one as long as anyone
        uses it, and then one for itself: the present version's stays.
        """
        present = self._present
        if present is not None and present.opened is opened:
            return present
        if opened.model in self._former:
            former = self._former[opened.model]()
            return RowCache(opened, self._capacity_bytes) if former is None else former
        if present is not None:
            self._former[present.opened.model] = ref(present)
        self._present = self.prepare(opened)
        self._next = None
        return self._present

    def prepare(self, opened: OpenVersion) -> RowCache:
        """Return the cache of a version that is to answer soon."""
        if self._next is None or self._next.opened is not opened:
            self._next = RowCache(opened, self._capacity_bytes)
        return self._next

    def recent(self, limit: int) -> list[str]:
        """Return the videos used last with the version that answers, newest first."""
        return [] if self._present is None else self._present.recent(limit)

    def drop(self, video_ids: Sequence[str] | None) -> None:
        """Forget rows of both; ``None`` forgets all."""
        for cache in self._held():
            cache.drop(video_ids)

    def drop_held(self, video_ids: Sequence[str]) -> None:
        """Forget those rows that are here, of both."""
        for cache in self._held():
            cache.drop_held(video_ids)

    def _held(self) -> list[RowCache]:
        return [cache for cache in (self._present, self._next) if cache is not None]


@dataclass(frozen=True, slots=True)
class Resolved(Generic[ReadT]):
    """Where the rows of N videos are, some still to be encoded.

    Attributes:
        slots: [N], see :data:`SlotArray`.
        fresh: videos to encode, by id, in the order of their places.
        generation: of the cache, when the fresh ones were read.
        read: what Redis said.
    """

    slots: SlotArray
    fresh: dict[str, Video]
    generation: int
    read: ReadT


async def resolve(
    cache: RowCache,
    video_ids: Sequence[str],
    read: Callable[[Sequence[str]], Awaitable[ReadT]],
) -> Resolved[ReadT]:
    """Find videos in the cache, and the others with one call of ``read``; pin before."""
    generation = cache.generation
    slots = cache.look_up(video_ids)
    absent = np.flatnonzero(slots < 0).tolist()
    missing = list(dict.fromkeys(video_ids[place] for place in absent))
    answer = await read(missing)
    # Not before: where there is no answer they are resolved once more.
    _HIT.inc(len(video_ids) - len(absent))
    if not missing:
        return Resolved(slots, {}, generation, answer)
    _MISS.inc(len(absent))
    width = cache.opened.manifest.layout.feature_dim
    pairs = zip(missing, answer.videos, strict=True)
    fresh = {i: video for i, video in pairs if video is not None and len(video.features) == width}
    places = {video_id: -2 - place for place, video_id in enumerate(fresh)}
    slots[absent] = [places.get(video_ids[place], -1) for place in absent]
    return Resolved(slots, fresh, generation, answer)


def count_hits(count: int) -> None:
    """Count rows that were in memory."""
    metrics.KEPT.count(_HIT, count)


def gather(table: FloatArray, new: FloatArray, slots: SlotArray) -> FloatArray:
    """Copy rows [N, R] from the cache's table and from new ones [M, R]; none may be nowhere.

    Of tables that are cut to the part of a row that is needed, only that part is copied.
    """
    if not len(new) or (slots >= 0).all():
        return STEPS.gather(table, slots)
    rows = np.empty((len(slots), table.shape[1]), np.float32)
    cached = slots >= 0
    rows[cached] = STEPS.gather(table, slots[cached])
    rows[~cached] = new[-2 - slots[~cached]]
    return rows


def encode(opened: OpenVersion, videos: Sequence[Video]) -> FloatArray:
    """Encode videos: [N, R]. A category that the model does not know becomes "unknown"."""
    layout: Layout = opened.manifest.layout
    if not videos:
        return np.zeros((0, layout.row_dim), np.float32)
    unknown = layout.num_categories
    categories = [v.category if 0 <= v.category < unknown else unknown for v in videos]
    features = np.stack([v.features for v in videos])
    return opened.model.encode_videos(features, np.array(categories, np.int64))
