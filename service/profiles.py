"""What the model makes of a user's history: computed once per change, kept in Redis.

A stored profile is used only if it was computed from exactly the present history by the
present model, and from videos as they are now. Otherwise it is computed: once at a time
within this process, and, by a lease in Redis, among all of them.

Clicks on videos that the service does not know are skipped: the model sees the newest known
ones. Such a profile names them, and is computed again once one of them is registered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import numpy as np

from model_store import FloatArray, OpenVersion, blocks_of
from service import metrics
from service.changes import Changes, fingerprint
from service.packed_profile import Origin, pack_profile, read_array, read_origin, rounded
from service.rows import RowCache, encode, gather, resolve
from service.state import (
    History,
    Meta,
    NewProfile,
    Position,
    State,
    StateDownError,
    Video,
    View,
    mark,
)

_CANCEL_SECONDS: Final = 0.2
_LEASE_MS: Final = 2_000
_POLL_SECONDS: Final = 0.004

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as one model version sees them.

    Attributes:
        array: [K, P], of the K blocks that hold clicks, at least one.
        position: the history it was computed from.
    """

    array: FloatArray
    position: Position


@dataclass(frozen=True, slots=True)
class _Read:
    videos: list[Video | None]


class Profiles:
    """Profiles of users, from Redis or computed.

    Args:
        state: where histories and profiles are.
        changes: says which videos changed.
        executor: threads for model runs.
        row_cache_bytes: memory for encoded videos.
        last_profiles: users whose last profile is kept in memory, for when Redis is gone.
    """

    def __init__(
        self,
        state: State,
        changes: Changes,
        *,
        executor: Executor,
        row_cache_bytes: int,
        last_profiles: int,
    ) -> None:
        self._state = state
        self._changes = changes
        self._executor = executor
        self._row_cache_bytes = row_cache_bytes
        self._cache: RowCache | None = None
        self._empty: tuple[OpenVersion, FloatArray] | None = None
        self._flights: dict[tuple[str, str, int], asyncio.Task[Profile]] = {}
        self._last: OrderedDict[bytes, tuple[str, Profile]] = OrderedDict()
        self._last_limit = last_profiles
        self._lease = uuid4().hex
        changes.on_videos(self._drop_rows)
        changes.on_user(self._forget)

    def rows(self, opened: OpenVersion) -> RowCache:
        """Return the row cache of a version; the one of the version before is let go."""
        if self._cache is None or self._cache.opened is not opened:
            self._cache = RowCache(opened, self._row_cache_bytes)
        return self._cache

    async def profile(self, opened: OpenVersion, user_id: str, view: View) -> Profile:
        """Return a user's profile, never older than ``view``.

        Raises:
            StateDownError: Redis does not answer.
        """
        if view.position.length == 0:
            metrics.PROFILES.labels("empty").inc()
            return Profile(await self.empty(opened), view.position)
        profile = await self._stored(opened, view)
        if profile is not None:
            metrics.PROFILES.labels("hit").inc()
        else:
            profile = await self._joined(opened, user_id, view)
        self._keep(opened, user_id, profile)
        return profile

    def last(self, opened: OpenVersion, user_id: str) -> Profile | None:
        """Return the profile last seen of a user by this process, however old it is."""
        version, profile = self._last.get(mark(user_id), ("", None))
        return profile if version == opened.manifest.version else None

    async def empty(self, opened: OpenVersion) -> FloatArray:
        """Return the profile [1, P] of a user without clicks."""
        if self._empty is None or self._empty[0] is not opened:
            nothing = np.zeros((0, opened.manifest.layout.row_dim), np.float32)
            loop = asyncio.get_running_loop()
            array = await loop.run_in_executor(self._executor, opened.model.profile, nothing)
            self._empty = (opened, array)
            return array
        return self._empty[1]

    async def compute(
        self, opened: OpenVersion, user_ids: Sequence[str], *, lease: bool = True
    ) -> dict[str, Profile]:
        """Compute and store profiles of several users in one run of the model.

        Users whose lease another process holds are left out.

        Raises:
            StateDownError: Redis does not answer.
        """
        token = f"{self._lease}:{random.getrandbits(32):08x}"
        found = await self._state.histories(
            user_ids, lease_ms=_LEASE_MS if lease else 0, token=token
        )
        histories = {u: h for u, h in zip(user_ids, found, strict=True) if h is not None}
        if not histories:
            return {}
        with metrics.stage("profile"):
            arrays, missing = await self._run(opened, list(histories.values()))
        computed = {}
        new = []
        for (user_id, history), array, absent in zip(
            histories.items(), arrays, missing, strict=True
        ):
            position = history.meta.position
            computed[user_id] = Profile(array, position)
            prints = [fingerprint(c.video_id) for c in history.clicks]
            origin = Origin(
                opened.manifest.version,
                position.version,
                history.read_at_ms,
                np.array(prints, np.uint32),
                absent,
            )
            new.append(NewProfile(user_id, position.version, pack_profile(array, origin), token))
        await self._store(new)
        return computed

    def describe(
        self, opened: OpenVersion, meta: Meta, packed: bytes | None
    ) -> dict[str, str | int]:
        """Say where a stored profile stands: fresh, stale or missing."""
        origin = read_origin(packed)
        if packed is None or origin is None:
            return {"state": "missing"}
        return {
            "state": "fresh" if self._answers(origin, opened, meta) else "stale",
            "model_version": origin.model_version,
            "history_version": origin.history_version,
            "computed_at": origin.read_at_ms,
            "bytes": len(packed),
        }

    async def close(self) -> None:
        """End what is still being computed."""
        while self._flights:
            tasks = list(self._flights.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
            # Their done callbacks run in the next turn of the loop.
            await asyncio.sleep(0)

    async def _stored(self, opened: OpenVersion, view: View) -> Profile | None:
        origin = read_origin(view.profile)
        if origin is None or view.profile is None:
            return None
        if not self._answers(origin, opened, view.meta):
            return None
        if origin.missing and any(await self._state.registered(origin.missing)):
            return None
        array = read_array(view.profile, opened)
        return None if array is None else Profile(array, view.position)

    def _answers(self, origin: Origin, opened: OpenVersion, meta: Meta) -> bool:
        return (
            origin.model_version == opened.manifest.version
            and origin.history_version == meta.position.version
            and self._changes.untouched(origin.fingerprints.tolist(), origin.read_at_ms)
        )

    async def _joined(self, opened: OpenVersion, user_id: str, view: View) -> Profile:
        key = (user_id, opened.manifest.version, view.position.version)
        task = self._flights.get(key)
        metrics.PROFILES.labels("computed" if task is None else "joined").inc()
        if task is None:
            task = asyncio.create_task(self._flight(opened, user_id))
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        # A caller who hangs up must not take the others' profile away.
        return await asyncio.shield(task)

    async def _flight(self, opened: OpenVersion, user_id: str) -> Profile:
        deadline = time.monotonic() + _LEASE_MS / 1e3
        while time.monotonic() < deadline:
            computed = await self.compute(opened, [user_id])
            if user_id in computed:
                return computed[user_id]
            # Another process is at it; its profile is a few milliseconds away.
            await asyncio.sleep(_POLL_SECONDS * random.uniform(0.5, 1.5))
            view = await self._state.view(user_id, [])
            profile = await self._stored(opened, view)
            if profile is not None:
                return profile
        return (await self.compute(opened, [user_id], lease=False))[user_id]

    async def _run(
        self, opened: OpenVersion, histories: Sequence[History]
    ) -> tuple[list[FloatArray], list[list[str]]]:
        cache = self.rows(opened)
        video_ids = list({c.video_id for h in histories for c in h.clicks})
        loop = asyncio.get_running_loop()
        with cache.pinned():
            resolved = await resolve(cache, video_ids, self._videos)
            slots = dict(zip(video_ids, resolved.slots.tolist(), strict=True))
            seen = [[slots[c.video_id] for c in h.clicks] for h in histories]
            arrays, rows = await loop.run_in_executor(
                self._executor, _profiles, opened, cache.table, list(resolved.fresh.values()), seen
            )
        cache.put(dict(zip(resolved.fresh, rows, strict=True)), generation=resolved.generation)
        missing = [
            sorted({c.video_id for c in h.clicks if slots[c.video_id] == -1}) for h in histories
        ]
        return arrays, missing

    async def _store(self, profiles: Sequence[NewProfile]) -> None:
        try:
            await self._state.store_profiles(profiles)
        except StateDownError as exc:
            # The profile is good all the same; the next score computes it again.
            metrics.PROFILES.labels("not_stored").inc(len(profiles))
            _log.warning("%d profiles not stored: %s", len(profiles), exc)

    async def _videos(self, video_ids: Sequence[str]) -> _Read:
        return _Read(await self._state.videos(video_ids))

    def _keep(self, opened: OpenVersion, user_id: str, profile: Profile) -> None:
        key = mark(user_id)
        self._last[key] = (opened.manifest.version, profile)
        self._last.move_to_end(key)
        if len(self._last) > self._last_limit:
            self._last.popitem(last=False)

    def _forget(self, user: bytes) -> None:
        self._last.pop(user, None)

    def _drop_rows(self, video_ids: Sequence[str] | None) -> None:
        if self._cache is not None:
            self._cache.drop(video_ids)


def _profiles(
    opened: OpenVersion,
    table: FloatArray,
    new: Sequence[Video],
    clicked: Iterable[Sequence[int]],
) -> tuple[list[FloatArray], FloatArray]:
    """Profile users [K, P] each, by the slots of their clicks; and the rows of what is new."""
    rows = encode(opened, new)
    length = opened.manifest.layout.history_length
    seen = [np.array([slot for slot in slots if slot != -1][-length:], int) for slots in clicked]
    if not seen:
        return [], rows
    layout = opened.manifest.layout
    filled = [layout.filled_blocks(len(slots)) for slots in seen]
    histories = np.stack(
        [blocks_of(gather(table, rows, slots), layout.block_size, max(filled)) for slots in seen]
    )
    lengths = np.array([len(slots) for slots in seen], np.int64)
    arrays = rounded(opened.model.profiles(histories, lengths))
    return [array[:blocks] for array, blocks in zip(arrays, filled, strict=True)], rows
