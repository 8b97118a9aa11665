"""The files in which several workers keep their metrics: those of ended workers are cleared up.

A worker has a file for its counters, one for its histograms, and one for each kind of gauge. What
an ended worker counted still counts: it is added to one file for all of them, so that a service
whose workers are replaced for months has no more files to read than workers. Its gauges go.
"""

from __future__ import annotations

import fcntl
import logging
import math
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

from service.liveness import is_alive

_ENDED: Final = "ended"
_SUMMED: Final = ("counter", "histogram")
_OF_THE_LIVING: Final = "gauge_live"

_log = logging.getLogger(__name__)


@contextmanager
def cleared(directory: Path) -> Iterator[None]:
    """Clear up, and let no other process do so meanwhile: what is read in here is consistent."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _clear(directory)
        yield


def _clear(directory: Path) -> None:
    for path in sorted(directory.glob("*.db")):
        kind, _, process = path.stem.rpartition("_")
        if not process.isdigit() or is_alive(int(process)):
            continue
        if kind in _SUMMED:
            try:
                _add(path, directory / f"{kind}_{_ENDED}.db")
            except (RuntimeError, struct.error, UnicodeDecodeError) as exc:
                # Killed while it wrote: what cannot be read now can never be.
                _log.warning("what worker %s counted is lost, %s: %s", process, path.name, exc)
            path.unlink()
        elif kind.startswith(_OF_THE_LIVING):
            path.unlink()


def _add(path: Path, total: Path) -> None:
    """Add the values of a file to those of another, which is at no time half-written."""
    staged = total.with_suffix(".staged")
    if total.exists():
        shutil.copyfile(total, staged)
    else:
        staged.unlink(missing_ok=True)
    sums = MmapedDict(str(staged))  # type: ignore[no-untyped-call]
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            if not key or math.isnan(value):
                raise RuntimeError("it holds what no worker writes")
            before, _ = sums.read_value(key)  # type: ignore[no-untyped-call]
            sums.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        sums.close()  # type: ignore[no-untyped-call]
    # Whoever is killed right here leaves the values in both files: counted twice, once.
    staged.replace(total)
