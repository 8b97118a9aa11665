"""From a table of impressions to mapped columns, in memory that does not grow with the table.

Training rows are sorted by user and time, so that a range of rows is a range of users; users and
their clicks become compressed sparse rows beside them. Test rows keep the order of their file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model_store import IntArray
from training.histories import ClickHistories
from training.impressions import COLUMN_NAMES, Impressions
from training.log_files import read_chunks
from training.npy_file import NpyFile, map_npy

_ROWS_PER_SORT = 1 << 21
_ROWS_PER_MOVE = 1 << 18
_TYPES = {name: np.float32 if name == "labels" else np.int64 for name in COLUMN_NAMES}
_USERS_PER_MERGE = 1 << 20


@dataclass(frozen=True, slots=True)
class UserIndex:
    """Where the rows and clicks of each user of a training table lie.

    Attributes:
        users: [u], ascending.
        offsets: [u + 1]; rows of user k are ``offsets[k]:offsets[k + 1]``, by time.
        histories: their clicks.
        categories: [videos]; -1 for a video that the table never names.
    """

    users: IntArray
    offsets: IntArray
    histories: ClickHistories
    categories: IntArray


def index_impressions(impressions: Impressions, *, num_items: int) -> tuple[Impressions, UserIndex]:
    """Sort impressions in memory by user and time, and index them."""
    categories = np.full(num_items, -1, np.int64)
    categories[impressions.item_ids] = impressions.categories
    rows = _by_user_and_time(impressions)
    users, starts = np.unique(rows.user_ids, return_index=True)
    histories = ClickHistories.from_impressions(rows)
    offsets = np.r_[starts, len(rows)].astype(np.int64)
    return rows, UserIndex(users, offsets, histories, categories)


def write_test_columns(source: Path, out: Path, *, num_items: int) -> None:
    """Write a test table's columns, in the order of the file.

    Raises:
        DataError: as :func:`training.log_files.read_chunks`.
    """
    largest = -1
    for chunk in _append(source, out, num_items=num_items):
        largest = max(largest, int(chunk.categories.max()))
    _write_integers(out, num_categories=np.array([largest + 1]))


def write_training_columns(
    source: Path, out: Path, *, num_items: int, rows_per_sort: int = _ROWS_PER_SORT
) -> None:
    """Write a training table's columns, sorted, and its index.

    An external bucket sort: rows go to disk as they come, then to buckets of neighbouring users,
    then every bucket is sorted in memory. In memory at a time are one piece of the source, one
    bucket, 16 bytes a user and 8 bytes a video.

    Args:
        source: the table.
        out: an empty directory.
        num_items: rows of the feature file.
        rows_per_sort: rows of a bucket; the rows of one user are never cut.

    Raises:
        DataError: as :func:`training.log_files.read_chunks`.
    """
    categories = np.full(num_items, -1, np.int64)
    counts = _UserCounts()
    for chunk in _append(source, out, num_items=num_items):
        categories[chunk.item_ids] = chunk.categories
        counts.add(chunk)
    users, rows_of = counts.total()
    offsets = np.r_[0, np.cumsum(rows_of)].astype(np.int64)
    edges = _buckets(offsets, rows_per_sort)
    if not counts.sorted and len(edges) > 2:  # noqa: PLR2004  more than one bucket
        _scatter(out, users, offsets, edges)
    _sort_buckets(out, offsets[edges].tolist(), is_sorted=counts.sorted)
    _write_integers(
        out,
        users=users,
        offsets=offsets,
        video_categories=categories,
        num_categories=np.array([int(categories.max()) + 1]),
    )


def map_columns(directory: Path) -> Impressions:
    """Map the columns that were written to a directory."""
    return Impressions(*(map_npy(directory / f"{name}.npy") for name in COLUMN_NAMES))


def num_categories(directory: Path) -> int:
    """One more than the largest category of the columns that were written to a directory."""
    return int(np.load(directory / "num_categories.npy")[0])


def map_index(directory: Path) -> UserIndex:
    """Map the index that was written beside training columns; users and offsets are read."""
    load = {name: map_npy(directory / f"{name}.npy") for name in (*_CLICKS, "video_categories")}
    users, offsets = (np.load(directory / f"{name}.npy") for name in ("users", "offsets"))
    histories = ClickHistories(
        np.array(load["click_users"]),
        np.r_[0, np.cumsum(load["click_counts"])].astype(np.int64),
        load["click_items"],
        load["click_times"],
    )
    return UserIndex(users, offsets, histories, load["video_categories"])


_CLICKS = ("click_users", "click_counts", "click_items", "click_times")


def _append(source: Path, out: Path, *, num_items: int) -> Iterator[Impressions]:
    """Write the columns of a table as they come, and yield each piece."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(NpyFile(out / f"{name}.npy", kind)) for name, kind in _TYPES.items()
        ]
        shown = stack.enter_context(
            tqdm(desc=f"reading {source.name}", unit=" rows", unit_scale=True, disable=None)
        )
        for chunk in read_chunks(source, num_items=num_items):
            for file, column in zip(files, chunk.columns(), strict=True):
                file.append(column)
            shown.update(len(chunk))
            yield chunk


def _write_integers(out: Path, **arrays: IntArray) -> None:
    for name, array in arrays.items():
        with NpyFile(out / f"{name}.npy", np.int64) as file:
            file.append(array)


class _UserCounts:
    """How many rows each user has, and whether rows come sorted by user and time."""

    def __init__(self) -> None:
        self.sorted = True
        self._last = (-1, 0)
        self._known = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._waiting: list[tuple[IntArray, IntArray]] = []

    def add(self, chunk: Impressions) -> None:
        users, times = chunk.user_ids, chunk.timestamps_ms
        later = (users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))
        first = (int(users[0]), int(times[0]))
        self.sorted = self.sorted and bool(later.all()) and first >= self._last
        self._last = int(users[-1]), int(times[-1])
        self._waiting.append(np.unique(users, return_counts=True))
        # Merged once in a while: each merge costs as much as there are users.
        if sum(len(part) for part, _ in self._waiting) > len(self._known[0]) + _USERS_PER_MERGE:
            self._known = self.total()
            self._waiting = []

    def total(self) -> tuple[IntArray, IntArray]:
        """Users, ascending, and their rows."""
        parts = [self._known, *self._waiting]
        users, place = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
        counts = np.zeros(len(users), np.int64)
        np.add.at(counts, place, np.concatenate([count for _, count in parts]))
        return users, counts


def _buckets(offsets: IntArray, rows_per_sort: int) -> IntArray:
    """Cut users into buckets of about so many rows: positions in ``offsets``, first and last too."""
    number = offsets[:-1] // rows_per_sort
    return np.r_[np.flatnonzero(np.r_[True, number[1:] != number[:-1]]), len(number)]


def _scatter(out: Path, users: IntArray, offsets: IntArray, edges: IntArray) -> None:
    """Move every row to its bucket, keeping the order of the file within each."""
    source, rows = map_columns(out), int(offsets[-1])
    moved = [out / f"{name}.moved.npy" for name in COLUMN_NAMES]
    targets = [
        np.lib.format.open_memmap(path, "w+", kind, (rows,))
        for path, kind in zip(moved, _TYPES.values(), strict=True)
    ]
    bucket_of_user = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    cursor = offsets[edges[:-1]].copy()
    for begin in tqdm(range(0, rows, _ROWS_PER_MOVE), desc="by user", leave=False, disable=None):
        chunk = source.part(begin, min(begin + _ROWS_PER_MOVE, rows))
        bucket = bucket_of_user[np.searchsorted(users, chunk.user_ids)]
        order = np.argsort(bucket, kind="stable")
        count = np.bincount(bucket, minlength=len(cursor))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        place = cursor[bucket[order]] + rank
        for target, column in zip(targets, chunk.columns(), strict=True):
            target[place] = column[order]
        cursor += count
    for name, path, target in zip(COLUMN_NAMES, moved, targets, strict=True):
        target.flush()
        path.replace(out / f"{name}.npy")


def _sort_buckets(out: Path, edges: Sequence[int], *, is_sorted: bool) -> None:
    """Sort each bucket where it lies, and write the clicks in it."""
    columns = [np.load(out / f"{name}.npy", mmap_mode="r+") for name in COLUMN_NAMES]
    with ExitStack() as stack:
        files = [stack.enter_context(NpyFile(out / f"{name}.npy", np.int64)) for name in _CLICKS]
        pairs = list(itertools.pairwise(edges))
        for begin, end in tqdm(pairs, desc="by time", leave=False, disable=None):
            rows = Impressions(*(column.view(np.ndarray)[begin:end] for column in columns))
            if not is_sorted:
                rows = _by_user_and_time(rows)
                for column, sorted_part in zip(columns, rows.columns(), strict=True):
                    column[begin:end] = sorted_part
            clicks = ClickHistories.from_impressions(rows)
            parts = clicks.users, np.diff(clicks.offsets), clicks.item_ids, clicks.timestamps_ms
            for file, part in zip(files, parts, strict=True):
                file.append(part)
    for column in columns:
        column.flush()


def _by_user_and_time(rows: Impressions) -> Impressions:
    """Sort by user, then time, then the order that rows have."""
    return rows.take(np.lexsort((rows.timestamps_ms, rows.user_ids)))
