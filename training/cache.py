"""The columnar cache: what is read of a log once, and mapped ever after.

Hides where it lies, when it is stale, and that several processes may want it at the same time. An
entry is a directory that appears whole or not at all; its name tells which files it was made of.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from training.errors import DataError

_FORMAT = 1
"""Rises whenever what an entry holds changes its meaning."""

_BUILDING = ".building-"
_ANY_MAY_WRITE = 0o222


class ColumnarCache:
    """Entries made of a log's files, beside the log unless said otherwise.

    An entry is stale when a source file's name, size or modification time changed; it is made
    anew, and the stale one removed.

    Args:
        log: directory of the log.
        root: where to keep entries of this and other logs. When not given: ``.columns`` in the
            log, or where that cannot be written, ``thacil-ctr`` in the user's cache directory.
    """

    def __init__(self, log: Path, root: Path | None = None) -> None:
        own = hashlib.sha256(str(log.resolve()).encode()).hexdigest()[:16]
        if root is not None:
            self.root = root / own
        elif _may_write(log):
            self.root = log / ".columns"
        else:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            self.root = Path(home) / "thacil-ctr" / own

    def entry(
        self,
        name: str,
        sources: Sequence[Path],
        build: Callable[[Path], None],
        *,
        depends: Sequence[int] = (),
    ) -> Path:
        """Return an entry's directory, made by ``build`` unless it is there already.

        Args:
            name: of the entry; an entry of the same name but other sources is removed.
            sources: the files that it is made of.
            build: fills an empty directory.
            depends: other numbers that it depends on.

        Raises:
            DataError: nothing can be written there; whatever ``build`` raises.
        """
        final = self.root / f"{name}-{_key(sources, depends)}"
        if final.is_dir():
            return final
        try:
            with self._alone():
                # Another process may have made it while this one waited.
                if not final.is_dir():
                    self._make(name, final, build)
        except OSError as exc:
            raise DataError(
                f"the columns of {sources[0].parent} cannot be kept in {self.root}: "
                f"{exc.strerror or exc}; name another place with --cache DIR"
            ) from exc
        return final

    def _make(self, name: str, final: Path, build: Callable[[Path], None]) -> None:
        for left in self.root.glob(f"{_BUILDING}*"):
            shutil.rmtree(left)
        staged = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self.root))
        try:
            build(staged)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        staged.rename(final)
        for stale in self.root.glob(f"{name}-*"):
            # Whoever still maps its files keeps them until he is done.
            if stale != final:
                shutil.rmtree(stale)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _may_write(directory: Path) -> bool:
    # The superuser may write anywhere; a directory marked as read-only is left alone all the same.
    return os.access(directory, os.W_OK) and bool(directory.stat().st_mode & _ANY_MAY_WRITE)


def _key(sources: Sequence[Path], depends: Sequence[int]) -> str:
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    # Names only from the log on down: a log that is moved keeps its cache.
    base = os.path.commonpath([path.parent for path in sources])
    named = [(os.path.relpath(path, base), size, changed) for path, size, changed in seen]
    text = json.dumps([_FORMAT, named, list(depends)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
