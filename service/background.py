"""Profiles ahead of time: computed after a click, many users in one run, dropped first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from service import metrics
from service.live_model import LiveModel, NoModelError
from service.profiles import Profiles
from service.state import StateDownError

_USERS_PER_RUN: Final = 32
_BUSY_SECONDS: Final = 0.005

_log = logging.getLogger(__name__)


class Background:
    """A bounded queue of users whose history has moved.

    A user who is dropped loses nothing but time: the next score computes the profile.

    Args:
        profiles: computes them.
        live: the version that answers.
        busy: whether requests wait for the model now; the background then holds back.
        queue_size: users waiting at most.
        patience_seconds: how long a user may wait before the profile is not worth it any more.
    """

    def __init__(
        self,
        profiles: Profiles,
        live: LiveModel,
        *,
        busy: Callable[[], bool],
        queue_size: int,
        patience_seconds: float,
    ) -> None:
        self._profiles = profiles
        self._live = live
        self._busy = busy
        self._queue_size = queue_size
        self._patience_seconds = patience_seconds
        self._waiting: dict[str, float] = {}
        self._wake = asyncio.Event()

    def refresh(self, user_ids: Iterable[str]) -> None:
        """Have profiles computed; those for whom there is no room are left to the next score."""
        now = time.monotonic()
        for user_id in user_ids:
            if user_id in self._waiting:
                continue
            if len(self._waiting) >= self._queue_size:
                metrics.PROFILES.labels("dropped").inc()
                continue
            self._waiting[user_id] = now
        metrics.PROFILES_WAITING.set(len(self._waiting))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                # The model is free again when a request says so, not when we are told.
                while self._busy() and self._is_patient():  # noqa: ASYNC110
                    await asyncio.sleep(_BUSY_SECONDS)
                await self._work(self._take())

    def _is_patient(self) -> bool:
        oldest = next(iter(self._waiting.values()), 0.0)
        return time.monotonic() - oldest < self._patience_seconds

    def _take(self) -> dict[str, float]:
        now = time.monotonic()
        batch: dict[str, float] = {}
        for user_id, since in list(self._waiting.items()):
            if len(batch) == _USERS_PER_RUN:
                break
            del self._waiting[user_id]
            if now - since > self._patience_seconds:
                metrics.PROFILES.labels("dropped").inc()
            else:
                batch[user_id] = since
        metrics.PROFILES_WAITING.set(len(self._waiting))
        return batch

    async def _work(self, batch: dict[str, float]) -> None:
        if not batch:
            return
        try:
            computed = await self._profiles.compute(self._live.current(), list(batch))
        except (StateDownError, NoModelError) as exc:
            metrics.PROFILES.labels("dropped").inc(len(batch))
            _log.debug("no background profiles: %s", exc)
            # What waits behind would fare no better right now.
            await asyncio.sleep(_BUSY_SECONDS)
        # One user's odd data must not end the work for all.
        except Exception:  # noqa: BLE001  it is logged
            metrics.PROFILES.labels("dropped").inc(len(batch))
            _log.exception("no background profiles", extra={"private": True})
        else:
            now = time.monotonic()
            metrics.PROFILES.labels("background").inc(len(computed))
            for user_id in computed:
                metrics.PROFILE_LAG.observe(now - batch[user_id])
