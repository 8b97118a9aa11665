"""How many connections each worker has open, where all workers see it.

A small file of whole numbers that all of them map: for each worker its process and its count. What
a worker writes the others read at once, without a call of the system.
"""

from __future__ import annotations

import fcntl
import os
from mmap import mmap
from pathlib import Path
from typing import Final

from service.liveness import is_alive

_NUMBERS: Final = 2
_MOST_WORKERS: Final = 1_024
_BYTES: Final = _MOST_WORKERS * _NUMBERS * 4
_NOBODY: Final = 0
_TAKES_NONE: Final = -1


class OpenConnections:
    """One worker's count beside the others'.

    Args:
        path: of the file, made where it is missing.

    Raises:
        OSError: it cannot be written, or more workers are alive than it has room for.
    """

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            # Two that begin at once must not take one place.
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                # Zeros that are written: on a full disk that fails, a map of a hole would kill.
                file.write(bytes(max(0, _BYTES - file.seek(0, os.SEEK_END))))
                file.flush()
                numbers = memoryview(mmap(file.fileno(), _BYTES)).cast("i")
                self._processes, self._counts = numbers[0::_NUMBERS], numbers[1::_NUMBERS]
                self._place = self._free_place()
                self._counts[self._place] = 0
                self._processes[self._place] = os.getpid()
            finally:
                # Not by closing the file: the map has a handle of its own, which holds the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
        self._takes_part = True

    def add(self, count: int) -> None:
        """Count connections that were made, or, below zero, that ended."""
        if self._takes_part:
            self._counts[self._place] += count

    def others_have_fewer(self) -> bool:
        """Whether another worker that is alive, and still takes connections, has fewer."""
        own = self._counts[self._place]
        for process, count in zip(self._processes, self._counts, strict=True):
            # Places are taken from the first on, and kept: behind an empty one there are no more.
            if process == _NOBODY:
                break
            if _TAKES_NONE < count < own and is_alive(process):
                return True
        return False

    def leave(self) -> None:
        """Say that no more are taken here: nobody leaves any to this worker from now on."""
        self._takes_part = False
        self._counts[self._place] = _TAKES_NONE

    def _free_place(self) -> int:
        for place, process in enumerate(self._processes):
            if process == _NOBODY or not is_alive(process):
                return place
        most = len(self._processes)
        raise OSError(f"{most} workers are alive, which is all there is room for")
