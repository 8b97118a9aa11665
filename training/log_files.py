"""Impressions in CSV or Parquet, as a stream of columns; refused with file, place and reason.

Hides the two formats. What is in memory at a time is one piece of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from model_store import IntArray
from training.errors import DataError
from training.impressions import Impressions, joined

COLUMNS = ("user_id", "item_id", "cate_id", "is_click", "timestamp")

_ROWS_PER_CHUNK = 1 << 18
_BYTES_PER_BLOCK = 1 << 23


def find_table(directory: Path, name: str) -> Path:
    """Find ``NAME.csv``, ``NAME.parquet`` (a file, or a directory of files) or the directory NAME.

    Raises:
        DataError: none of them is there, or more than one is.
    """
    choices = [directory / f"{name}.csv", directory / f"{name}.parquet", directory / name]
    found = [path for path in choices if path.exists()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{directory} holds {names}: keep the one that is meant")
    if not found:
        raise DataError(
            f"{choices[0]} cannot be read: No such file or directory, nor {name}.parquet"
        )
    return found[0]


def files_of(path: Path) -> list[Path]:
    """List the files that a table lies in, in the order in which they are read.

    Raises:
        DataError: no such file, or a directory without Parquet files.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path} cannot be read: No such file or directory")
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path} is a directory without a .parquet file")
    return files


def load_impressions(path: Path, *, num_items: int) -> Impressions:
    """Read a whole table into memory, in the order of its file.

    Raises:
        DataError: as :func:`read_chunks`.
    """
    return joined(list(read_chunks(path, num_items=num_items)))


def read_chunks(path: Path, *, num_items: int) -> Iterator[Impressions]:
    """Read a table piece by piece; columns in any order, others ignored.

    Args:
        path: a CSV with one header line, or Parquet: a file or a directory of files.
        num_items: rows of the feature file that item ids index.

    Raises:
        DataError: a column is missing, the table is empty, or a value is impossible.
    """
    rows = 0
    for file in files_of(path):
        pieces = _parquet(file) if file.suffix == ".parquet" else _csv(file)
        for place, columns in pieces:
            _check(place, columns, num_items)
            users, items, categories, labels, times = columns
            rows += len(users)
            yield Impressions(users, items, categories, labels.astype(np.float32), times)
    if not rows:
        raise DataError(f"{path}, line 2: the file holds no impression")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece lies in its file: its first row is number ``first`` of lines or rows."""

    path: Path
    unit: str
    first: int

    def __call__(self, row: int) -> str:
        return f"{self.path}, {self.unit} {self.first + row}"


_Piece = tuple[_Place, list[IntArray]]


def _csv(path: Path) -> Iterator[_Piece]:
    names = _header(path)
    if names is None:
        return
    line = 2
    try:
        # One block after another: threads would read ahead of the memory that is meant.
        reader = pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(
                column_names=names, skip_rows=1, block_size=_BYTES_PER_BLOCK, use_threads=False
            ),
            parse_options=pa.csv.ParseOptions(
                # An empty line between others is a fault; it must not shift their numbers.
                quote_char=False,
                ignore_empty_lines=_ends_in_empty_line(path),
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(COLUMNS, pa.int64()),
                include_columns=list(COLUMNS),
                null_values=[],
            ),
        )
        for batch in reader:
            yield _Place(path, "line", line), [batch.column(name).to_numpy() for name in COLUMNS]
            line += len(batch)
    except pa.ArrowInvalid as exc:
        raise _csv_fault(path, names, exc) from exc


def _header(path: Path) -> list[str] | None:
    """Column names, or nothing where no row follows them."""
    try:
        with path.open("rb") as file:
            line = file.readline()
            is_empty = not file.read(_BYTES_PER_BLOCK).strip()
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    names = [name.strip() for name in line.decode("utf-8-sig", "replace").split(",")]
    _need_columns(f"{path}, line 1", names)
    return None if is_empty else names


def _need_columns(place: str, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(f"{place}: missing column {', '.join(missing)}; found {list(names)}")


def _ends_in_empty_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return file.read().replace(b"\r", b"").endswith(b"\n\n")


def _csv_fault(path: Path, names: Sequence[str], error: pa.ArrowInvalid) -> DataError:
    """Search line by line for what the reader stumbled over."""
    with path.open("rb") as file:
        next(file)
        for number, line in enumerate(file, start=2):
            values = line.rstrip(b"\r\n").split(b",")
            if len(values) != len(names):
                return DataError(
                    f"{path}, line {number}: {len(values)} fields, the header has {len(names)}"
                )
            for name, value in zip(names, values, strict=True):
                if name in COLUMNS and not _is_integer(value):
                    shown = value.decode("utf-8", "replace")[:40]
                    return DataError(
                        f"{path}, line {number}: {name} is {shown!r}, not an integer of 64 bits"
                    )
    return DataError(f"{path} cannot be read as a table of integers: {error}")


def _is_integer(value: bytes) -> bool:
    digits = value.strip().removeprefix(b"-")
    return digits.isdigit() and int(digits) < 1 << 63


def _parquet(path: Path) -> Iterator[_Piece]:
    first = 1
    try:
        with pa.parquet.ParquetFile(path) as file:
            _need_columns(str(path), file.schema_arrow.names)
            batches = file.iter_batches(_ROWS_PER_CHUNK, columns=list(COLUMNS), use_threads=False)
            for batch in batches:
                columns = [_integers(path, first, name, batch.column(name)) for name in COLUMNS]
                yield _Place(path, "row", first), columns
                first += len(batch)
    except (OSError, pa.ArrowInvalid) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc


def _integers(path: Path, first: int, name: str, column: pa.Array) -> IntArray:
    if column.null_count:
        row = first + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{path}, row {row}: {name} is empty")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"))
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise DataError(
            f"{path}, from row {first} on: {name} holds {column.type}, no integers: {exc}"
        ) from exc


def _check(place: _Place, columns: Sequence[IntArray], num_items: int) -> None:
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
        raise DataError(f"{place(row)}: {name} is {value}, {why}")
