"""Videos in binary form: npz, npy, Arrow, Feather or Parquet; read chunk by chunk.

Columns ``video_id`` (text), ``category`` (int64), ``features`` (float16 or float32, [N, F]).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from service.bodies import identifier_fault
from service.state import FEATURE_LIMIT

COLUMNS: Final = ("video_id", "category", "features")
_FORMAT: Final = 1


class VideoFileError(Exception):
    """A file or body that holds no videos in a form that is read here."""


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """N videos.

    Attributes:
        video_ids: [N].
        categories: [N].
        features: [N, F], float16 or float32.
    """

    video_ids: list[str]
    categories: npt.NDArray[np.int64]
    features: npt.NDArray[Any]

    def faults(self, width: int | None) -> dict[int, str]:
        """Say what is wrong, by row: id, width, numbers that cannot be stored."""
        faults: dict[int, str] = {}
        for row, video_id in enumerate(self.video_ids):
            fault = identifier_fault(video_id)
            if fault is not None:
                faults[row] = f"video_id: {fault}"
        found = self.features.shape[1]
        if width is not None and found != width:
            whole = f"features: {found} given, the model takes {width}"
            return {**faults, **dict.fromkeys(range(len(self.video_ids)), whole)}
        beyond = ~(np.abs(self.features).max(axis=1, initial=0) <= FEATURE_LIMIT)
        for row in np.flatnonzero(beyond).tolist():
            finite = bool(np.isfinite(self.features[row]).all())
            limit = f"magnitudes above {FEATURE_LIMIT:.0f} cannot be stored"
            faults[row] = f"features: {limit if finite else 'NaN and infinity are no features'}"
        return faults

    def packed(self) -> list[tuple[str, bytes]]:
        """Return ids and values as the state stores them; in one go, without a loop over numbers."""
        count, width = self.features.shape
        layout = np.dtype([("format", "u1"), ("category", "<i8"), ("features", "<f2", (width,))])
        table = np.empty(count, layout)
        table["format"], table["category"] = _FORMAT, self.categories
        table["features"] = self.features
        data, size = table.tobytes(), layout.itemsize
        return [
            (video_id, data[row * size : (row + 1) * size])
            for row, video_id in enumerate(self.video_ids)
        ]

    def without(self, rows: Sequence[int]) -> VideoChunk:
        """Return the chunk without some rows."""
        left = np.setdiff1d(np.arange(len(self.video_ids)), rows)
        ids = [self.video_ids[row] for row in left.tolist()]
        return VideoChunk(ids, self.categories[left], self.features[left])


def read_chunks(path: Path, *, start: int, size: int) -> Iterator[VideoChunk]:
    """Read a file or a directory of ``.npy`` files from row ``start`` on.

    Raises:
        VideoFileError: it cannot be read, or its columns are not those above.
    """
    if path.is_dir():
        yield from _from_arrays(_mapped(path), start, size)
    elif path.suffix == ".npz":
        with path.open("rb") as stream:
            yield from read_npz(stream, start=start, size=size)
    else:
        yield from _from_arrow(path, start, size)


def count_rows(path: Path) -> int:
    """Return how many videos there are, without reading them.

    Raises:
        VideoFileError: as for :func:`read_chunks`.
    """
    if path.is_dir():
        return len(_mapped(path)[0])
    if path.suffix == ".npz":
        with path.open("rb") as stream, ExitStack() as stack:
            return _columns(_open_zip(stream), stack)[0].rows
    if path.suffix == ".parquet":
        return int(_parquet(path).metadata.num_rows)
    return int(_arrow_table(path).num_rows)


def read_npz(
    stream: IO[bytes], *, start: int = 0, size: int = 4096, expanded_limit: int | None = None
) -> Iterator[VideoChunk]:
    """Read an npz chunk by chunk, in constant memory.

    Raises:
        VideoFileError: it is none, or it would expand beyond ``expanded_limit`` bytes.
    """
    archive = _open_zip(stream)
    expanded = sum(member.file_size for member in archive.infolist())
    if expanded_limit is not None and expanded > expanded_limit:
        raise VideoFileError(f"expands to {expanded} bytes, {expanded_limit} are allowed")
    with ExitStack() as stack:
        ids, categories, features = _columns(archive, stack)
        for column in (ids, categories, features):
            column.skip(start)
        for at in range(start, ids.rows, size):
            count = min(size, ids.rows - at)
            yield _chunk(ids.read(count), categories.read(count), features.read(count))


def read_arrow_stream(data: bytes) -> VideoChunk:
    """Read an Arrow IPC stream from memory.

    Raises:
        VideoFileError: it is none, or pyarrow is not installed.
    """
    arrow = _arrow("")
    try:
        table = arrow.ipc.open_stream(data).read_all()
    except (arrow.ArrowException, OSError) as exc:
        raise VideoFileError(f"no Arrow stream: {exc}") from exc
    return _arrow_chunk(table)


@dataclass(slots=True)
class _Column:
    """An array inside an archive, read from its beginning to its end."""

    name: str
    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def rows(self) -> int:
        return self.shape[0]

    def skip(self, rows: int) -> None:
        left = rows * self._row_bytes()
        while left:
            left -= len(self._exactly(min(left, 1 << 24)))

    def read(self, rows: int) -> npt.NDArray[Any]:
        data = self._exactly(rows * self._row_bytes())
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def _exactly(self, size: int) -> bytes:
        try:
            data = self.stream.read(size)
        except (zipfile.BadZipFile, OSError, ValueError) as exc:
            raise VideoFileError(f"{self.name} cannot be read: {exc}") from exc
        if len(data) < size:
            raise VideoFileError(f"{self.name} ends too early: the file was cut short")
        return data


def _open_zip(stream: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError) as exc:
        raise VideoFileError(f"no npz: {exc}") from exc


def _columns(archive: zipfile.ZipFile, stack: ExitStack) -> list[_Column]:
    columns = []
    for name in COLUMNS:
        try:
            stream = stack.enter_context(archive.open(f"{name}.npy"))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except KeyError:
            raise VideoFileError(
                f"the array {name} is missing: there are {', '.join(COLUMNS)}"
            ) from None
        except (ValueError, OSError, zipfile.BadZipFile) as exc:
            raise VideoFileError(f"the array {name} cannot be read: {exc}") from exc
        if fortran and len(shape) > 1:
            raise VideoFileError(f"the array {name} is in Fortran order: save it in C order")
        columns.append(_Column(name, stream, shape, dtype))
    _check_columns([(c.name, c.shape, c.dtype) for c in columns])
    return columns


def _check_columns(columns: Sequence[tuple[str, tuple[int, ...], np.dtype[Any]]]) -> None:
    kinds = {"video_id": ("US", 1), "category": ("iu", 1), "features": ("f", 2)}
    for name, shape, dtype in columns:
        kind, dimensions = kinds[name]
        if dtype.kind not in kind or len(shape) != dimensions:
            raise VideoFileError(
                f"the array {name} is {dtype} of {len(shape)} dimensions: wanted are video_id as "
                "text [N], category as integers [N] and features as float16 or float32 [N, F]"
            )
    if len({shape[0] for _, shape, _ in columns}) != 1:
        found = ", ".join(f"{name} {shape[0]}" for name, shape, _ in columns)
        raise VideoFileError(f"the arrays differ in length: {found}")


def _chunk(
    ids: npt.NDArray[Any], categories: npt.NDArray[Any], features: npt.NDArray[Any]
) -> VideoChunk:
    if ids.dtype.kind == "S":
        try:
            names = [name.decode() for name in ids.tolist()]
        except UnicodeDecodeError as exc:
            raise VideoFileError(f"a video_id is not UTF-8: {exc}") from exc
    else:
        names = ids.tolist()
    return VideoChunk(names, _categories(categories), features)


def _categories(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if len(numbers) and numbers.max() > np.iinfo(np.int64).max:
        raise VideoFileError(f"category {numbers.max()} is beyond int64")
    return numbers.astype(np.int64)


def _mapped(directory: Path) -> list[npt.NDArray[Any]]:
    try:
        arrays = [np.load(directory / f"{name}.npy", mmap_mode="r") for name in COLUMNS]
    except (OSError, ValueError) as exc:
        raise VideoFileError(f"{directory}: {exc}") from exc
    _check_columns([(n, a.shape, a.dtype) for n, a in zip(COLUMNS, arrays, strict=True)])
    return arrays


def _from_arrays(arrays: Sequence[npt.NDArray[Any]], start: int, size: int) -> Iterator[VideoChunk]:
    ids, categories, features = arrays
    for at in range(start, len(ids), size):
        part = slice(at, at + size)
        yield _chunk(ids[part], np.asarray(categories[part]), np.asarray(features[part]))


def _arrow(part: str) -> Any:
    try:
        arrow = import_module("pyarrow")
        import_module("pyarrow.ipc")
        return import_module(f"pyarrow.{part}") if part else arrow
    except ImportError:
        raise VideoFileError(
            "Arrow and Parquet need pyarrow: pip install 'thacil-ctr[bulk]', or send an npz"
        ) from None


def _arrow_table(path: Path) -> Any:
    arrow = _arrow("")
    try:
        source = arrow.memory_map(str(path))
        try:
            return arrow.ipc.open_file(source).read_all()
        except arrow.ArrowInvalid:
            source.seek(0)
            return arrow.ipc.open_stream(source).read_all()
    except (arrow.ArrowException, OSError) as exc:
        raise VideoFileError(
            f"{path} is no .npz, directory of .npy, Arrow, Feather or Parquet file: {exc}"
        ) from exc


def _parquet(path: Path) -> Any:
    try:
        return _arrow("parquet").ParquetFile(path)
    except (_arrow("").ArrowException, OSError) as exc:
        raise VideoFileError(f"{path} is no Parquet file: {exc}") from exc


def _from_arrow(path: Path, start: int, size: int) -> Iterator[VideoChunk]:
    if path.suffix != ".parquet":
        table = _arrow_table(path)
        for at in range(start, table.num_rows, size):
            yield _arrow_chunk(table.slice(at, size))
        return
    at = 0
    tables = _arrow("").Table
    for batch in _parquet(path).iter_batches(batch_size=size, columns=list(COLUMNS)):
        # Batches end where row groups do, too: a start may lie within one.
        kept = batch.slice(max(0, start - at))
        at += batch.num_rows
        if kept.num_rows:
            yield _arrow_chunk(tables.from_batches([kept]))


def _arrow_chunk(table: Any) -> VideoChunk:
    try:
        ids, categories, features = (table.column(n).combine_chunks() for n in COLUMNS)
        width = features.type.list_size
        if categories.null_count or not str(categories.type).startswith(("int", "uint")):
            raise VideoFileError(f"categories are {categories.type}, or one is null")
        numbers = features.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), width)
        chunk = VideoChunk(
            ids.to_pylist(), _categories(categories.to_numpy(zero_copy_only=False)), numbers
        )
    except (KeyError, AttributeError, ValueError, TypeError) as exc:
        raise VideoFileError(
            "wanted are the columns video_id (string), category (int64) and features "
            f"(fixed_size_list of float16 or float32), without nulls: {exc}"
        ) from exc
    if chunk.features.dtype.kind != "f" or None in chunk.video_ids:
        raise VideoFileError(f"features are {chunk.features.dtype}, or a video_id is null")
    return chunk
