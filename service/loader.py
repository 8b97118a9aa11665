"""``load-videos``: a file of videos straight into Redis, resumed where it stopped."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from service.state import Lifetimes, State, StateDownError
from service.video_files import VideoChunk, count_rows, read_chunks

_CHUNK: Final = 2_048
_IN_FLIGHT: Final = 4
_RETRY_SECONDS: Final = 1.0
_GIVE_UP_SECONDS: Final = 120.0
_FAULTS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a file.

    Attributes:
        rows: videos read, those of earlier attempts not counted.
        new: stored for the first time.
        changed: stored over other bytes.
        faults: refused.
        seconds: it took.
    """

    rows: int
    new: int
    changed: int
    faults: int
    seconds: float


class Bookmark:
    """How far a file has been loaded into a Redis, in a small file beside it.

    Args:
        source: the file, or the directory of arrays.
        url: of Redis; its password is not kept.
    """

    def __init__(self, source: Path, url: str) -> None:
        self.path = source.with_name(f"{source.name}.loaded.json")
        stat = (source / "features.npy" if source.is_dir() else source).stat()
        scheme, _, rest = url.partition("://")
        into = f"{scheme}://{rest.rpartition('@')[2]}"
        self._of = {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "into": into}

    def read(self) -> int:
        """Return how many rows are in Redis; 0 for another Redis, or a file that has changed."""
        try:
            kept = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return 0
        return int(kept["rows"]) if kept.get("of") == self._of else 0

    def write(self, rows: int) -> None:
        """Note that so many rows are in Redis.

        Raises:
            OSError: the directory takes no file.
        """
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps({"rows": rows, "of": self._of}))
        draft.replace(self.path)

    def remove(self) -> None:
        """Forget it: the file is loaded."""
        self.path.unlink(missing_ok=True)


async def load_videos(
    source: Path, url: str, *, lifetimes: Lifetimes, width: int | None = None
) -> Loaded:
    """Load a file; the same call goes on where one that was interrupted stopped.

    Args:
        source: see ``video_files``.
        url: of Redis.
        lifetimes: as the service has them.
        width: of the features that the model takes; ``None`` takes any.

    Raises:
        VideoFileError: the file cannot be read.
        StateDownError: Redis was gone for two minutes.
    """
    total, bookmark = count_rows(source), Bookmark(source, url)
    state = State(url, timeout_seconds=10.0, lifetimes=lifetimes)
    start, began = min(bookmark.read(), total), time.monotonic()
    loader = _Loader(state, width)
    with tqdm(total=total, initial=start, unit=" videos", unit_scale=True, disable=None) as bar:
        try:
            done, resumable = start, True
            async for rows in loader.load(read_chunks(source, start=start, size=_CHUNK)):
                done += rows
                bar.update(rows)
                resumable = resumable and _noted(bookmark, done)
        finally:
            await state.close()
    bookmark.remove()
    seconds = time.monotonic() - began
    return Loaded(total - start, loader.new, loader.changed, loader.faults, seconds)


def _noted(bookmark: Bookmark, rows: int) -> bool:
    try:
        bookmark.write(rows)
    except OSError as exc:
        told = f"load-videos: interrupted, it would begin again: {bookmark.path}: {exc.strerror}"
        tqdm.write(told, file=sys.stderr)
        return False
    return True


class _Loader:
    """Keeps several chunks on their way; they are confirmed in order."""

    def __init__(self, state: State, width: int | None) -> None:
        self._state, self._width = state, width
        self.new = self.changed = self.faults = 0

    async def load(self, chunks: Iterator[VideoChunk]) -> AsyncIterator[int]:
        """Load chunks; yield how many rows each had, once it and all before are in Redis."""
        underway: deque[asyncio.Task[int]] = deque()
        try:
            # Reading and packing in a thread: Redis is kept busy meanwhile.
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                underway.append(asyncio.create_task(self._put(chunk)))
                if len(underway) >= _IN_FLIGHT:
                    yield await underway.popleft()
            while underway:
                yield await underway.popleft()
        finally:
            for task in underway:
                task.cancel()

    async def _put(self, chunk: VideoChunk) -> int:
        rows = len(chunk.video_ids)
        faults = chunk.faults(self._width)
        if faults:
            self._tell(chunk, faults)
            chunk = chunk.without(list(faults))
        packed = await asyncio.to_thread(chunk.packed)
        results = await self._stubborn(packed)
        self.new += results.count(2)
        self.changed += results.count(1)
        return rows

    async def _stubborn(self, packed: list[tuple[str, bytes]]) -> list[int]:
        give_up = time.monotonic() + _GIVE_UP_SECONDS
        while True:
            try:
                return await self._state.register_packed(packed)
            except StateDownError as exc:
                if time.monotonic() > give_up:
                    raise
                tqdm.write(f"load-videos: {exc}; trying again", file=sys.stderr)
                await asyncio.sleep(_RETRY_SECONDS)

    def _tell(self, chunk: VideoChunk, faults: dict[int, str]) -> None:
        for row, fault in faults.items():
            self.faults += 1
            if self.faults <= _FAULTS_SHOWN:
                tqdm.write(f"load-videos: {chunk.video_ids[row]!r}: {fault}", file=sys.stderr)
