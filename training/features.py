"""Content vectors: checked, and half as wide in memory as in most files.

Hides float16: a vector is stored with 11 significant bits, and computed with in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model_store import FloatArray
from training.errors import DataError

Half: TypeAlias = npt.NDArray[np.float16]
Features: TypeAlias = FloatArray | Half
"""[videos, F], memory-mapped wherever it comes from a file."""

_ROWS_PER_CHUNK = 16_384
_LARGEST = float(np.finfo(np.float16).max)


def load_features(path: Path) -> Features:
    """Map content vectors without reading them.

    Raises:
        DataError: no such file, or not a 2-D array of floats.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read as an npy array: {exc}") from exc
    if loaded.ndim != 2 or not len(loaded) or loaded.dtype.kind != "f":  # noqa: PLR2004  rows and columns
        raise DataError(
            f"{path} has shape {loaded.shape} of {loaded.dtype}, wanted are floats [videos, F]"
        )
    # A plain array over the same pages: memmap's own class makes every gather slower.
    return loaded.view(np.ndarray)


def checked_halves(path: Path, features: Features) -> Iterator[Half]:
    """Yield float16 rows in pieces, [up to 16,384, F] each.

    Raises:
        DataError: NaN or infinity in a row, or a number that float16 cannot hold.
    """
    begins = range(0, len(features), _ROWS_PER_CHUNK)
    for begin in tqdm(begins, desc=f"reading {path.name}", leave=False, disable=None):
        part = features[begin : begin + _ROWS_PER_CHUNK]
        _check(path, part, begin)
        yield part.astype(np.float16)


def _check(path: Path, part: Features, begin: int) -> None:
    # NaN fails this comparison too.
    fits = (np.abs(part) <= _LARGEST).all(axis=1)
    if fits.all():
        return
    row = int(np.argmin(fits))
    worst = part[row][~(np.abs(part[row]) <= _LARGEST)][0]
    if np.isfinite(worst):
        raise DataError(
            f"{path}, row {begin + row}: a feature is {worst:g}, float16 holds up to "
            f"{_LARGEST:,.0f}: scale the features"
        )
    raise DataError(f"{path}, row {begin + row}: a feature is NaN or infinite")
