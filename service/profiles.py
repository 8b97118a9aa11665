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
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import uuid4

import numpy as np

from model_store import FloatArray, OpenVersion
from service import metrics
from service.changes import Changes, fingerprint
from service.last_profiles import LastProfiles, Profile
from service.looking import Looking
from service.packed_profile import Origin, pack_profile, read_array, read_origin
from service.profile_run import run_profiles
from service.rows import RowCache, RowCaches, resolve
from service.state import (
    History,
    Meta,
    NewProfile,
    State,
    StateDownError,
    Video,
    View,
)

_CANCEL_SECONDS: Final = 0.2
_LEASE_MS: Final = 2_000
_POLL_SECONDS: Final = 0.004

_EMPTY: Final = metrics.PROFILES.labels("empty")
_HIT: Final = metrics.PROFILES.labels("hit")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    videos: list[Video | None]
    unregistered: frozenset[str]


class Profiles:
    """Profiles of users, from Redis or computed.

    Args:
        state: where histories and profiles are.
        changes: says which videos changed.
        executor: threads for model runs.
        row_cache_bytes: memory for encoded videos.
        inline: whether a single user's profile may be computed on the event loop.
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
        inline: bool = True,
    ) -> None:
        self._state = state
        self._changes = changes
        self._executor = executor
        self._inline = inline
        self._caches = RowCaches(row_cache_bytes)
        self._empty: tuple[OpenVersion, FloatArray] | None = None
        self._flights: dict[tuple[str, str, int], asyncio.Task[Profile]] = {}
        self._computing: dict[tuple[str, str], asyncio.Future[Profile | None]] = {}
        self._storing: set[asyncio.Task[list[NewProfile]]] = set()
        self.last = LastProfiles(last_profiles)
        """What this process saw last."""
        self.asks_at_once = state.asks_at_once
        """Whether :meth:`look` usually sends its question before it returns."""
        self._lease = uuid4().hex
        changes.on_videos(self._caches.drop)
        changes.on_appeared(self._caches.drop_held)
        changes.on_user(self.last.forget)

    def rows(self, opened: OpenVersion) -> RowCache:
        """Return the row cache of a version."""
        return self._caches.of(opened)

    def prepare(self, opened: OpenVersion) -> RowCache:
        """Return the row cache of a version that is to answer soon."""
        return self._caches.prepare(opened)

    def recent_videos(self, limit: int) -> list[str]:
        """Return the videos used last with the version that answers, newest first."""
        return self._caches.recent(limit)

    async def view(self, opened: OpenVersion, user_id: str, video_ids: Sequence[str]) -> View:
        """Read a user and videos in one round trip, with all that :meth:`profile` asks of it.

        Raises:
            StateDownError: Redis does not answer.
        """
        missing = self.last.missing(opened, user_id)
        asked = [*video_ids, *missing] if missing else video_ids
        return await self.seen(Looking(self._state.look(user_id, asked), missing))

    def look(self, user_id: str, guess: Profile, *, stored: bool = True) -> Looking:
        """Ask whether a profile still holds; the question is sent, if it can be, when this returns.

        With ``stored`` the stored one is read, too, for :meth:`profile` if this does not hold.
        """
        missing = () if guess.origin is None else guess.origin.missing
        return Looking(self._state.look(user_id, missing, profile=stored), missing)

    async def seen(self, looking: Looking) -> View:
        """Return what came of a look.

        Raises:
            StateDownError: Redis does not answer.
        """
        return looking.told_apart(await self._state.seen(looking.look))

    def seen_now(self, looking: Looking) -> View | None:
        """Return what came of a look if it is here; nothing where it is not, or an error came."""
        view = self._state.seen_now(looking.look)
        return None if view is None else looking.told_apart(view)

    async def profile(self, opened: OpenVersion, user_id: str, view: View) -> Profile:
        """Return a user's profile, never older than ``view``, which :meth:`view` gave.

        Raises:
            StateDownError: Redis does not answer.
        """
        if view.position.length == 0:
            _EMPTY.inc()
            return Profile(await self.empty(opened), view.position)
        profile = self.last.last(opened, user_id)
        if profile is not None and self.holds(opened, profile, view):
            return profile
        profile = await self._stored(opened, view)
        if profile is not None:
            _HIT.inc()
        else:
            profile = await self._joined(opened, user_id, view)
        self.last.keep(user_id, profile)
        return profile

    def holds(self, opened: OpenVersion, profile: Profile, view: View) -> bool:
        """Whether a profile that was decoded before is still what the present history makes."""
        origin = profile.origin
        if origin is None or profile.position != view.position:
            return False
        if any(view.registered.get(video_id, True) for video_id in origin.missing):
            return False
        if not self._answers(origin, opened, view.meta):
            return False
        metrics.KEPT.count(_HIT)
        return True

    async def empty(self, opened: OpenVersion) -> FloatArray:
        """Return the profile [1, P] of a user without clicks."""
        if self._empty is None or self._empty[0] is not opened:
            nothing = np.zeros((0, opened.manifest.layout.row_dim), np.float32)
            loop = asyncio.get_running_loop()
            array = await loop.run_in_executor(self._executor, opened.model.profile, nothing)
            self._empty = (opened, array)
            return array
        return self._empty[1]

    async def compute(self, opened: OpenVersion, user_ids: Sequence[str]) -> dict[str, Profile]:
        """Compute and store profiles of several users in one run of the model.

        Returns:
            Those that were stored: without users whose lease another process holds, or whose
            history has moved on meanwhile.

        Raises:
            StateDownError: Redis does not answer.
        """
        computed, new = await self._computed(opened, user_ids)
        for user_id, profile in computed.items():
            if user_id in self.last:
                self.last.keep(user_id, profile)
        stored = await self._store(new)
        return {new.user_id: computed[new.user_id] for new in stored}

    async def describe(
        self, opened: OpenVersion, meta: Meta, packed: bytes | None
    ) -> dict[str, str | int]:
        """Say where a stored profile stands: fresh, stale or missing.

        Raises:
            StateDownError: Redis does not answer.
        """
        origin = read_origin(packed)
        if packed is None or origin is None:
            return {"state": "missing"}
        fresh = self._answers(origin, opened, meta) and not await self._any_registered(
            origin.missing, {}
        )
        return {
            "state": "fresh" if fresh else "stale",
            "model_version": origin.model_version,
            "history_version": origin.history_version,
            "computed_at": origin.read_at_ms,
            "bytes": len(packed),
        }

    async def close(self) -> None:
        """End what is still being computed or stored."""
        while self._flights or self._storing:
            tasks = [*self._flights.values(), *self._storing]
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
        if await self._any_registered(origin.missing, view.registered):
            return None
        array = read_array(view.profile, opened)
        return None if array is None else Profile(array, view.position, origin)

    async def _any_registered(self, video_ids: Sequence[str], told: Mapping[str, bool]) -> bool:
        asked = [video_id for video_id in video_ids if video_id not in told]
        if any(told[video_id] for video_id in video_ids if video_id in told):
            return True
        return any(await self._state.registered(asked))

    def _answers(self, origin: Origin, opened: OpenVersion, meta: Meta) -> bool:
        return (
            origin.model_version == opened.manifest.version
            and origin.history_version == meta.position.version
            and self._changes.untouched(origin.fingerprints, origin.read_at_ms)
        )

    async def _joined(self, opened: OpenVersion, user_id: str, view: View) -> Profile:
        key = (user_id, opened.manifest.version, view.position.version)
        task = self._flights.get(key)
        metrics.PROFILES.labels("computed" if task is None else "joined").inc()
        if task is None:
            task = asyncio.create_task(self._flight(opened, user_id, view.position.version))
            self._flights[key] = task
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        # A caller who hangs up must not take the others' profile away.
        return await asyncio.shield(task)

    async def _flight(self, opened: OpenVersion, user_id: str, version: int) -> Profile:
        deadline = time.monotonic() + _LEASE_MS / 1e3
        while time.monotonic() < deadline:
            # The background may be at it.
            running = self._computing.get((user_id, opened.manifest.version))
            if running is not None:
                profile = await asyncio.shield(running)
            else:
                profile = await self._compute_one(opened, user_id, lease=True)
            if profile is not None and profile.position.version >= version:
                return profile
            if running is not None:
                continue
            # Another process is at it; its profile is a few milliseconds away.
            await asyncio.sleep(_POLL_SECONDS * random.uniform(0.5, 1.5))
            view = await self._state.view(user_id, [])
            profile = await self._stored(opened, view)
            if profile is not None:
                return profile
        profile = await self._compute_one(opened, user_id, lease=False)
        if profile is None:
            raise AssertionError("nobody can lease what nobody asked for")
        return profile

    async def _compute_one(
        self, opened: OpenVersion, user_id: str, *, lease: bool
    ) -> Profile | None:
        computed, new = await self._computed(opened, [user_id], lease=lease)
        if new:
            # Who waits for the profile need not wait until it is stored.
            task = asyncio.create_task(self._store(new))
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)
        return computed.get(user_id)

    async def _computed(
        self, opened: OpenVersion, user_ids: Sequence[str], *, lease: bool = True
    ) -> tuple[dict[str, Profile], list[NewProfile]]:
        """Compute profiles; others in this process can wait for them meanwhile."""
        loop = asyncio.get_running_loop()
        model_version = opened.manifest.version
        told = {
            user_id: loop.create_future()
            for user_id in user_ids
            if (user_id, model_version) not in self._computing
        }
        for user_id, future in told.items():
            self._computing[user_id, model_version] = future
        computed: dict[str, Profile] = {}
        try:
            token = f"{self._lease}:{random.getrandbits(32):08x}"
            found = await self._state.histories(
                user_ids, lease_ms=_LEASE_MS if lease else 0, token=token
            )
            lag_ms = self._changes.lag_ms()
            histories = {u: h for u, h in zip(user_ids, found, strict=True) if h is not None}
            if not histories:
                return {}, []
            with metrics.stage("profile"):
                arrays, missing = await self._run(opened, list(histories.values()))
            rows = zip(histories.items(), arrays, missing, strict=True)
            for (user_id, history), array, absent in rows:
                origin = _origin(opened, history, absent, lag_ms)
                computed[user_id] = Profile(array, history.meta.position, origin)
            return computed, [_new(user, profile, token) for user, profile in computed.items()]
        finally:
            for user_id, future in told.items():
                del self._computing[user_id, model_version]
                if not future.done():
                    future.set_result(computed.get(user_id))

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
            work = partial(run_profiles, opened, cache.table, list(resolved.fresh.values()), seen)
            if self._inline and len(histories) == 1 and not resolved.fresh:
                # As long as handing it to a thread and back.
                arrays, rows = work()
            else:
                arrays, rows = await loop.run_in_executor(self._executor, work)
        cache.put(dict(zip(resolved.fresh, rows, strict=True)), generation=resolved.generation)
        # One that is there and does not fit the model is skipped, too. It is not waited for: it
        # changes when it is registered anew, and the change log says so.
        unregistered = resolved.read.unregistered
        missing = [sorted({c.video_id for c in h.clicks} & unregistered) for h in histories]
        return arrays, missing

    async def _store(self, profiles: Sequence[NewProfile]) -> list[NewProfile]:
        try:
            stored = await self._state.store_profiles(profiles)
        except StateDownError as exc:
            # The profile is good all the same; the next score computes it again.
            metrics.PROFILES.labels("not_stored").inc(len(profiles))
            _log.warning("%d profiles not stored: %s", len(profiles), exc)
            return []
        metrics.PROFILES.labels("not_stored").inc(stored.count(False))
        return [new for new, kept in zip(profiles, stored, strict=True) if kept]

    async def _videos(self, video_ids: Sequence[str]) -> _Read:
        videos = await self._state.videos(video_ids)
        pairs = zip(video_ids, videos, strict=True)
        return _Read(videos, frozenset(video_id for video_id, video in pairs if video is None))


def _origin(opened: OpenVersion, history: History, missing: Sequence[str], lag_ms: int) -> Origin:
    return Origin(
        opened.manifest.version,
        history.meta.position.version,
        # Rows in memory are of the moment when the change logs were last read.
        history.read_at_ms - lag_ms,
        np.array([fingerprint(c.video_id) for c in history.clicks], np.uint32),
        missing,
    )


def _new(user_id: str, profile: Profile, token: str) -> NewProfile:
    if profile.origin is None:
        raise AssertionError("a computed profile has an origin")
    packed = pack_profile(profile.array, profile.origin)
    read_at_ms = profile.origin.read_at_ms
    return NewProfile(user_id, profile.position.version, packed, token, read_at_ms)
