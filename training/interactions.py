"""Click logs in the MicroVideo-1.7M layout: read fast, refused with file, line and reason.

Hides how CSV becomes columns, and how the clicks of a user become a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_store import FloatArray, IntArray
from training.errors import DataError

COLUMNS = ("user_id", "item_id", "cate_id", "is_click", "timestamp")


@dataclass(frozen=True, slots=True)
class Impressions:
    """Impressions in the order of their file, one array a column, n long.

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
        return Impressions(
            self.user_ids[index],
            self.item_ids[index],
            self.categories[index],
            self.labels[index],
            self.timestamps_ms[index],
        )


@dataclass(frozen=True, slots=True)
class ClickLog:
    """A whole log: training and test videos are separate id spaces.

    Attributes:
        train: impressions to learn from.
        train_features: [training videos, F].
        test: impressions of the test videos, or nothing.
        test_features: [test videos, F], or nothing.
        num_categories: one more than the largest category of the log.
    """

    train: Impressions
    train_features: FloatArray
    test: Impressions | None
    test_features: FloatArray | None
    num_categories: int

    @property
    def feature_dim(self) -> int:
        """F, width of a content feature."""
        return int(self.train_features.shape[1])


def load_click_log(directory: Path, *, test_file: str | Path | None = None) -> ClickLog:
    """Read a directory in the MicroVideo-1.7M layout.

    Args:
        directory: holds ``train_data.csv``, ``train_cover_image_feature.npy`` and, for
            evaluation, ``test_data.csv`` and ``test_cover_image_feature.npy``.
        test_file: another CSV of impressions of the test videos; relative to here or there.

    Raises:
        DataError: a file is missing or faulty; names file, line and reason.
    """
    train_features = load_features(directory / "train_cover_image_feature.npy")
    train = load_impressions(directory / "train_data.csv", num_items=len(train_features))
    csv = _test_csv(directory, test_file)
    test = test_features = None
    if csv.exists() or test_file is not None:
        test_features = load_features(directory / "test_cover_image_feature.npy")
        test = load_impressions(csv, num_items=len(test_features))
        if test_features.shape[1] != train_features.shape[1]:
            raise DataError(
                f"{directory}: training features are {train_features.shape[1]} wide, "
                f"test features {test_features.shape[1]}: extract both the same way"
            )
    largest = max(int(part.categories.max()) for part in (train, test) if part is not None)
    return ClickLog(train, train_features, test, test_features, largest + 1)


def load_features(path: Path) -> FloatArray:
    """Read content vectors: float32 [videos, F], memory-mapped where the file is float32.

    Raises:
        DataError: no such file, not a 2-D array of numbers, or NaN or infinity in a row.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read as an npy array: {exc}") from exc
    if loaded.ndim != 2 or not len(loaded) or loaded.dtype.kind != "f":  # noqa: PLR2004  rows and columns
        raise DataError(
            f"{path} has shape {loaded.shape} of {loaded.dtype}, wanted are floats [videos, F]"
        )
    features = np.asarray(loaded, np.float32)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{path}, row {row}: a feature is NaN or infinite")
    return features


def load_impressions(path: Path, *, num_items: int) -> Impressions:
    """Read a CSV of impressions; columns in any order, others ignored.

    Args:
        path: one header line, commas.
        num_items: rows of the feature file that item ids index.

    Raises:
        DataError: a column is missing, the file is empty, or a value is impossible.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    header, _, body = data.partition(b"\n")
    names = [name.strip() for name in header.decode("utf-8-sig", "replace").split(",")]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"{path}, line 1: missing column {', '.join(missing)}; found {names}")
    if not body.strip():
        raise DataError(f"{path}, line 2: the file holds no impression")
    table = _parse(path, body, names)
    columns = [table[:, names.index(name)] for name in COLUMNS]
    _check(path, columns, num_items)
    users, items, categories, labels, times = (np.ascontiguousarray(c) for c in columns)
    return Impressions(users, items, categories, labels.astype(np.float32), times)


def _parse(path: Path, body: bytes, names: Sequence[str]) -> IntArray:
    """All fields as integers; the slow search for a fault runs only when there is one."""
    width = len(names)
    body = body.replace(b"\r", b"").rstrip(b"\n")
    rows = body.count(b"\n") + 1
    fields = body.replace(b"\n", b",").split(b",")
    if len(fields) == rows * width:
        try:
            return np.array(fields).astype(np.int64).reshape(rows, width)
        except (ValueError, OverflowError):
            pass
    for number, line in enumerate(body.split(b"\n"), start=2):
        values = line.split(b",")
        if len(values) != width:
            raise DataError(f"{path}, line {number}: {len(values)} fields, the header has {width}")
        for name, value in zip(names, values, strict=True):
            try:
                np.array([value]).astype(np.int64)
            except (ValueError, OverflowError):
                shown = value.decode("utf-8", "replace")[:40]
                raise DataError(
                    f"{path}, line {number}: {name} is {shown!r}, not an integer"
                ) from None
    raise DataError(f"{path} cannot be read as a table of integers")


def _check(path: Path, columns: Sequence[IntArray], num_items: int) -> None:
    users, items, categories, labels, _ = columns
    rules = (
        ("user_id", users, users < 0, "must be 0 or more"),
        ("item_id", items, items < 0, "must be 0 or more"),
        ("item_id", items, items >= num_items, f"the feature file has {num_items} rows"),
        ("cate_id", categories, categories < 0, "must be 0 or more"),
        ("is_click", labels, (labels != 0) & (labels != 1), "must be 0 or 1"),
    )
    faults = [
        (int(np.argmax(bad)), n, int(c[np.argmax(bad)]), why)
        for n, c, bad, why in rules
        if bad.any()
    ]
    if faults:
        row, name, value, why = min(faults)
        raise DataError(f"{path}, line {row + 2}: {name} is {value}, {why}")


def _test_csv(directory: Path, test_file: str | Path | None) -> Path:
    if test_file is None:
        return directory / "test_data.csv"
    given = Path(test_file)
    return given if given.exists() else directory / given


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

    def bounds(self, user_ids: IntArray, before_ms: IntArray | None) -> tuple[IntArray, IntArray]:
        """Return where each user's clicks begin, and end strictly before a moment.

        Args:
            user_ids: [n].
            before_ms: [n]; nothing sees all clicks.

        Returns:
            Two arrays [n], positions in ``item_ids``; 0 and 0 for a user without clicks.
        """
        if not len(self.users):
            return np.zeros_like(user_ids), np.zeros_like(user_ids)
        place = np.searchsorted(self.users, user_ids).clip(max=len(self.users) - 1)
        known = self.users[place] == user_ids
        starts, ends = self.offsets[place], self.offsets[place + 1]
        if before_ms is not None:
            ends = self._before(place, before_ms)
        # A history without clicks is the same one for every user.
        empty = ~known | (ends <= starts)
        return np.where(empty, 0, starts), np.where(empty, 0, ends)

    def _before(self, place: IntArray, before_ms: IntArray) -> IntArray:
        """One search over (user, rank of time) keys, which ascend over all clicks."""
        moments = np.unique(self.timestamps_ms)
        owner = np.repeat(np.arange(len(self.users)), np.diff(self.offsets))
        keys = owner * (len(moments) + 1) + np.searchsorted(moments, self.timestamps_ms)
        wanted = place * (len(moments) + 1) + np.searchsorted(moments, before_ms)
        return np.searchsorted(keys, wanted).astype(np.int64)


def _text_rank(ids: IntArray) -> IntArray:
    """Rank ids as visible_history orders ties: by their text, not by their value."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    rank = np.empty(len(distinct), np.int64)
    rank[np.argsort(distinct.astype(str), kind="stable")] = np.arange(len(distinct))
    return rank[inverse]
