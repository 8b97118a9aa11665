"""An npy file that grows: what is appended is on disk, not in memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt


class NpyFile:
    """Write an array of unknown length piece by piece; rows are whole when it is closed.

    Args:
        path: the file, replaced if there is one.
        dtype: of the array.
        row: shape of one entry; empty for numbers.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, row: tuple[int, ...] = ()) -> None:
        self._dtype, self._row, self._count = np.dtype(dtype), row, 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, part: npt.NDArray[Any]) -> None:
        """Add entries, [n, *row]."""
        self._file.write(np.ascontiguousarray(part, self._dtype).data)
        self._count += len(part)

    def close(self) -> None:
        """Write the final length and wait until everything is on the disk."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write_header(self) -> None:
        # The format leaves room for a longer first dimension, so the header keeps its length.
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._row),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Map an npy file; a plain array, as memmap's own class makes every gather slower."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded.view(np.ndarray)
