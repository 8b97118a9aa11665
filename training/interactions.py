"""A whole click log in the MicroVideo-1.7M layout, mapped from its columnar cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from training.cache import ColumnarCache
from training.columns import (
    UserIndex,
    index_impressions,
    map_columns,
    map_index,
    num_categories,
    write_test_columns,
    write_training_columns,
)
from training.errors import DataError
from training.features import Features, checked_halves, load_features
from training.histories import ClickHistories
from training.impressions import Impressions
from training.log_files import files_of, find_table, load_impressions
from training.npy_file import NpyFile, map_npy

__all__ = [
    "ClickHistories",
    "ClickLog",
    "Features",
    "Impressions",
    "load_click_log",
    "load_features",
    "load_impressions",
]


@dataclass(frozen=True, slots=True)
class ClickLog:
    """A whole log: training and test videos are separate id spaces.

    Attributes:
        train: impressions to learn from.
        train_features: [training videos, F].
        test: impressions of the test videos, or nothing.
        test_features: [test videos, F], or nothing.
        num_categories: one more than the largest category of the training half.
        index: of ``train``, which it says is sorted by user and time; see :meth:`indexed`.
    """

    train: Impressions
    train_features: Features
    test: Impressions | None
    test_features: Features | None
    num_categories: int
    index: UserIndex | None = None

    @property
    def feature_dim(self) -> int:
        """F, width of a content feature."""
        return int(self.train_features.shape[1])

    def indexed(self) -> tuple[ClickLog, UserIndex]:
        """Return the log with ``train`` sorted by user and time, and its index."""
        if self.index is not None:
            return self, self.index
        rows, index = index_impressions(self.train, num_items=len(self.train_features))
        return replace(self, train=rows, index=index), index


def load_click_log(
    directory: Path, *, test_file: str | Path | None = None, cache: Path | None = None
) -> ClickLog:
    """Map a log's columns; read its files first where the columnar cache does not have them.

    Args:
        directory: holds ``train_data`` (``.csv``, ``.parquet``, or a directory of Parquet files),
            ``train_cover_image_feature.npy`` and, for evaluation, ``test_data`` and
            ``test_cover_image_feature.npy``.
        test_file: another table of impressions of the test videos; relative to here or there.
        cache: where to keep the columns; beside the log when not given.

    Raises:
        DataError: a file is missing or faulty; names file, place and reason.
    """
    columns = ColumnarCache(directory, cache)
    train_features = _features(columns, directory, "train")
    source = find_table(directory, "train_data")
    build = partial(write_training_columns, source, num_items=len(train_features))
    made = columns.entry("train", files_of(source), build, depends=[len(train_features)])
    train, index = map_columns(made), map_index(made)
    test = test_features = None
    table = _test_table(directory, test_file)
    # Of what is learnt from: a category of the test file alone is unknown, as it is in serving.
    known = num_categories(made)
    if table is not None:
        test_features = _features(columns, directory, "test")
        _same_width(directory, train_features, test_features)
        made = _test_entry(columns, table, len(test_features))
        test = map_columns(made)
    return ClickLog(train, train_features, test, test_features, known, index)


def _features(columns: ColumnarCache, directory: Path, part: str) -> Features:
    """Map the float16 features of a half of the log; its own file, once checked, if it is that."""
    path = directory / f"{part}_cover_image_feature.npy"
    given = load_features(path)
    is_half = given.dtype == "<f2" and given.flags.c_contiguous

    def build(out: Path) -> None:
        with NpyFile(out / "features.npy", "<f2", (given.shape[1],)) as file:
            for rows in checked_halves(path, given):
                if not is_half:
                    file.append(rows)

    made = columns.entry(f"{part}_features", [path], build)
    features: Features = given if is_half else map_npy(made / "features.npy")
    return features


def _test_entry(columns: ColumnarCache, table: Path, num_items: int) -> Path:
    build = partial(write_test_columns, table, num_items=num_items)
    return columns.entry(f"test_{table.stem}", files_of(table), build, depends=[num_items])


def _test_table(directory: Path, test_file: str | Path | None) -> Path | None:
    if test_file is not None:
        given = Path(test_file)
        return given if given.exists() else directory / given
    choices = ("test_data.csv", "test_data.parquet", "test_data")
    there = any((directory / name).exists() for name in choices)
    return find_table(directory, "test_data") if there else None


def _same_width(directory: Path, train: Features, test: Features) -> None:
    if test.shape[1] != train.shape[1]:
        raise DataError(
            f"{directory}: training features are {train.shape[1]} wide, "
            f"test features {test.shape[1]}: extract both the same way"
        )
