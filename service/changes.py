"""What changed under our caches: videos by other workers' hands, users that were deleted.

Each process follows the change logs in Redis. A cached row is dropped once its video has
changed; a stored profile answers only if none of its videos changed since they were read.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from service.state import Changes as Logged
from service.state import State, StateDownError

CLOCK_SKEW_MS: Final = 500
"""How far the clocks of a cluster's servers may be apart."""

_USUAL_LAG_MS: Final = 500
_REMEMBERED: Final = 200_000

_log = logging.getLogger(__name__)


def fingerprint(video_id: str) -> int:
    """Return 32 bits that stand for a video; a collision only costs a profile too much."""
    return binascii.crc32(video_id.encode())


class Changes:
    """Follows the change logs. Redis must have been read once before anything is certain.

    Args:
        state: where the logs are.
        poll_seconds: how often they are read.
    """

    def __init__(self, state: State, *, poll_seconds: float) -> None:
        self._state = state
        self._poll_seconds = poll_seconds
        self._cursors: Mapping[int, tuple[bytes, int]] = {}
        self._changed_at_ms: dict[int, int] = {}
        self._latest_ms = 0
        self._unknown_before_ms = math.inf
        self._on_videos: list[Callable[[Sequence[str] | None], None]] = []
        self._on_appeared: list[Callable[[Sequence[str]], None]] = []
        self._on_user: list[Callable[[bytes, int], None]] = []
        self._read_at = time.monotonic()

    def on_videos(self, callback: Callable[[Sequence[str] | None], None]) -> None:
        """Have changed videos reported; ``None`` says that it may be any."""
        self._on_videos.append(callback)

    def on_appeared(self, callback: Callable[[Sequence[str]], None]) -> None:
        """Have videos reported that were not registered before."""
        self._on_appeared.append(callback)

    def on_user(self, callback: Callable[[bytes, int], None]) -> None:
        """Have deleted users reported, by their marks, and the versions that were left."""
        self._on_user.append(callback)

    def lag_ms(self) -> int:
        """Return for how long videos may have changed unnoticed; 0 when that is the usual while."""
        lag_ms = (time.monotonic() - self._read_at) * 1e3
        return int(lag_ms) if lag_ms > _USUAL_LAG_MS else 0

    def untouched(self, fingerprints: npt.NDArray[np.uint32], since_ms: int) -> bool:
        """Whether none of these videos can have changed since a moment of Redis' clock."""
        since_ms -= CLOCK_SKEW_MS + _USUAL_LAG_MS
        if since_ms < self._unknown_before_ms:
            return False
        if since_ms > self._latest_ms:
            return True
        changed = self._changed_at_ms
        return not any(changed.get(each, 0) >= since_ms for each in fingerprints.tolist())

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.poll()
            except StateDownError as exc:
                _log.debug("change logs not read: %s", exc)
            # Nothing that a log holds may end the watch.
            except Exception:  # noqa: BLE001  it is logged
                _log.exception("change logs not read")
            await asyncio.sleep(self._poll_seconds)

    async def poll(self) -> None:
        """Read the logs once.

        Raises:
            StateDownError: Redis does not answer.
        """
        first = not self._cursors and self._unknown_before_ms == math.inf
        asked_at = time.monotonic()
        logged = await self._state.changes(self._cursors)
        self._cursors = logged.cursors
        if first:
            self._unknown_before_ms = 0
        self._take(logged)
        self._read_at = asked_at

    def drop(self, video_ids: Sequence[str]) -> None:
        """Drop rows of videos that this process changed itself, without waiting for the logs."""
        for callback in self._on_videos:
            callback(video_ids)

    def appear(self, video_ids: Sequence[str]) -> None:
        """Drop rows of what videos were that are registered anew."""
        for callback in self._on_appeared:
            callback(video_ids)

    def forget(self, user: bytes, version: int) -> None:
        """Drop what is held of a user that was deleted, leaving a history at ``version``."""
        for callback in self._on_user:
            callback(user, version)

    def _take(self, logged: Logged) -> None:
        self._unknown_before_ms = max(self._unknown_before_ms, logged.unknown_before_ms)
        for video_id, moment in logged.videos:
            self._changed_at_ms[fingerprint(video_id)] = moment
            self._latest_ms = max(self._latest_ms, moment)
        if len(self._changed_at_ms) > _REMEMBERED:
            self._changed_at_ms.clear()
            self._unknown_before_ms = self._latest_ms
        if logged.gap:
            _log.warning("changes of videos were missed: all cached rows are read again")
            for callback in self._on_videos:
                callback(None)
        elif logged.videos:
            self.drop([video_id for video_id, _ in logged.videos])
        if logged.appeared:
            self.appear(logged.appeared)
        for user, version in logged.users:
            self.forget(user, version)
