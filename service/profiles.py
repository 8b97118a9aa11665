"""What the model makes of a user's history: computed once per change, kept in Redis.

A profile is bytes with its origin inside: model version and history version. It answers for
exactly these two and is otherwise computed again. It keeps the features that the clicked
videos had when it was computed, until the next click or model version.

Clicks on videos that the service does not know are skipped: the model sees the newest known
ones. Such a profile also names the state of the video table and is computed again when
videos were registered since.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np

from model_store import FloatArray, OpenVersion
from service import metrics
from service.live_model import LiveModel, NoModelError
from service.rows import RowCache, encode, resolve
from service.state import Position, State, StateDownError, Videos, View

_HEADER: Final = struct.Struct("<2sHqqq")
_MAGIC: Final = b"P1"
_COMPLETE: Final = -1
_BACKGROUND_TASKS: Final = 2
_CANCEL_SECONDS: Final = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as one model version sees them.

    Attributes:
        array: [B, P].
        position: the history it was computed from.
    """

    array: FloatArray
    position: Position


class Profiles:
    """Profiles of users, from Redis or computed, each at most once at a time per process.

    Args:
        state: where histories and profiles are.
        live: the version that answers.
        executor: threads for model runs.
        cached_rows: encoded videos kept.
        queue_size: users waiting for the background, more are dropped.
    """

    def __init__(
        self,
        state: State,
        live: LiveModel,
        *,
        executor: Executor,
        cached_rows: int,
        queue_size: int,
    ) -> None:
        self._state = state
        self._live = live
        self._executor = executor
        self._cached_rows = cached_rows
        self._cache: RowCache | None = None
        self._empty: tuple[OpenVersion, FloatArray] | None = None
        self._flights: dict[tuple[str, str, int, int], asyncio.Task[Profile]] = {}
        self._queue: asyncio.Queue[str] = asyncio.Queue(queue_size)
        self._waiting: set[str] = set()

    def rows(self, opened: OpenVersion) -> RowCache:
        """Return the row cache of a version; the one of the version before is let go."""
        if self._cache is None or self._cache.opened is not opened:
            self._cache = RowCache(opened, self._cached_rows)
        return self._cache

    async def profile(self, opened: OpenVersion, user_id: str, view: View) -> Profile:
        """Return a user's profile, never older than ``view``."""
        if view.position.length == 0:
            metrics.PROFILES.labels("empty").inc()
            return Profile(await self._empty_profile(opened), view.position)
        stored = _unpack(view, opened)
        if stored is not None:
            metrics.PROFILES.labels("hit").inc()
            return Profile(stored, view.position)
        version = opened.manifest.version
        key = (user_id, version, view.position.version, view.counters.written)
        task = self._flights.get(key)
        metrics.PROFILES.labels("computed" if task is None else "joined").inc()
        if task is None:
            task = asyncio.create_task(self._compute(opened, user_id))
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        # A caller who hangs up must not take the others' profile away.
        return await asyncio.shield(task)

    def refresh(self, user_ids: Iterable[str]) -> None:
        """Have profiles computed in the background; with a full queue the next score does it."""
        for user_id in user_ids:
            if user_id in self._waiting:
                continue
            try:
                self._queue.put_nowait(user_id)
            except asyncio.QueueFull:
                metrics.PROFILES.labels("dropped").inc()
                continue
            self._waiting.add(user_id)

    async def run(self) -> None:
        """Work on the background queue until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_BACKGROUND_TASKS):
                group.create_task(self._work())

    async def close(self) -> None:
        """End what is still being computed."""
        while self._flights:
            tasks = list(self._flights.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
            # Their done callbacks run in the next turn of the loop.
            await asyncio.sleep(0)

    async def _work(self) -> None:
        while True:
            user_id = await self._queue.get()
            self._waiting.discard(user_id)
            try:
                opened = self._live.current()
                view = await self._state.view(user_id, [])
                await self.profile(opened, user_id, view)
            except (StateDownError, NoModelError) as exc:
                # The next score computes it.
                _log.warning("no background profile: %s", exc)
            # One user's odd data must not end the work for all.
            except Exception:  # noqa: BLE001  it is logged
                _log.exception("no background profile")

    async def _compute(self, opened: OpenVersion, user_id: str) -> Profile:
        version, clicks = await self._state.history(user_id)
        cache = self.rows(opened)
        video_ids = [click.video_id for click in clicks]
        resolved = await resolve(cache, video_ids, self._videos)
        counters = resolved.read.counters
        fresh = resolved.fresh
        loop = asyncio.get_running_loop()
        with metrics.stage("profile"):
            encoded = dict(
                zip(
                    fresh,
                    await loop.run_in_executor(
                        self._executor, encode, opened, list(fresh.values())
                    ),
                    strict=True,
                )
            )
            cache.put(encoded, counters)
            rows, known = resolved.complete(encoded)
            seen = rows[known][-opened.manifest.layout.history_length :]
            array = await loop.run_in_executor(self._executor, opened.model.profile, seen)
        written = _COMPLETE if known.all() else counters.written
        packed = _pack(array, opened, version=version, written=written)
        await self._state.store_profile(user_id, packed, version=version)
        return Profile(array, Position(version, len(clicks)))

    async def _videos(self, video_ids: Sequence[str]) -> Videos:
        return await self._state.videos(video_ids)

    async def _empty_profile(self, opened: OpenVersion) -> FloatArray:
        if self._empty is None or self._empty[0] is not opened:
            nothing = np.zeros((0, opened.manifest.layout.row_dim), np.float32)
            loop = asyncio.get_running_loop()
            array = await loop.run_in_executor(self._executor, opened.model.profile, nothing)
            self._empty = (opened, array)
            return array
        return self._empty[1]


def _pack(array: FloatArray, opened: OpenVersion, *, version: int, written: int) -> bytes:
    name = opened.manifest.version.encode()
    header = _HEADER.pack(_MAGIC, len(name), version, written, array.size)
    return header + name + array.astype("<f4").tobytes()


def _unpack(view: View, opened: OpenVersion) -> FloatArray | None:
    """Return the stored profile where it answers for this version and this history."""
    packed = view.profile
    if packed is None or len(packed) < _HEADER.size:
        return None
    magic, name_length, version, written, size = _HEADER.unpack_from(packed)
    start = _HEADER.size + name_length
    layout = opened.manifest.layout
    if (
        magic != _MAGIC
        or packed[_HEADER.size : start] != opened.manifest.version.encode()
        or version != view.position.version
        or written not in (_COMPLETE, view.counters.written)
        or size != layout.num_blocks * layout.profile_dim
        or len(packed) != start + 4 * size
    ):
        return None
    array = np.frombuffer(packed, "<f4", offset=start).astype(np.float32)
    return array.reshape(layout.num_blocks, layout.profile_dim)
