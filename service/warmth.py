"""Rows before they are asked for: at the start, and before a promoted version answers.

The videos used last are remembered in Redis once a minute and when a process ends. A process that
starts encodes them before it is ready; one that takes up a version encodes its own before the
version answers. Both are bounded in time: what is not warm then is encoded when it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final

from model_store import OpenVersion
from service.live_model import LiveModel, NoModelError
from service.profiles import Profiles
from service.rows import RowCache, encode
from service.state import State, StateDownError

_PER_STEP: Final = 256
_SAVE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Warmth:
    """Fills row caches.

    Args:
        state: where videos are.
        profiles: has the caches.
        executor: threads for model runs.
        videos: how many are warmed at most.
        seconds: how long that may take.
    """

    def __init__(
        self, state: State, profiles: Profiles, *, executor: Executor, videos: int, seconds: float
    ) -> None:
        self._state = state
        self._profiles = profiles
        self._executor = executor
        self._videos = videos
        self._seconds = seconds

    async def warm(self, opened: OpenVersion) -> int:
        """Encode the videos used last with a version that is to answer; how many were."""
        cache = self._profiles.prepare(opened)
        if not self._videos:
            return 0
        begin = time.monotonic()
        try:
            video_ids = self._profiles.recent_videos(self._videos)
            if not video_ids:
                video_ids = (await self._state.recent_videos())[: self._videos]
            async with asyncio.timeout(self._seconds):
                await self._fill(cache, video_ids)
        except TimeoutError:
            _log.info("not all videos were encoded within %.1f s", self._seconds)
        except StateDownError as exc:
            _log.warning("starting cold: %s", exc)
        if len(cache):
            took = time.monotonic() - begin
            _log.info(
                "%d videos encoded for %s in %.2f s", len(cache), opened.manifest.version, took
            )
        return len(cache)

    async def remember(self, live: LiveModel) -> None:
        """Write down each minute, and when cancelled, which videos were used last."""
        while True:
            try:
                await asyncio.sleep(_SAVE_SECONDS)
            finally:
                await self._save(live)

    async def _save(self, live: LiveModel) -> None:
        try:
            live.current()
            video_ids = self._profiles.recent_videos(self._videos)
            if video_ids:
                await self._state.remember_videos(video_ids)
        except (StateDownError, NoModelError) as exc:
            _log.debug("videos used last not written down: %s", exc)

    async def _fill(self, cache: RowCache, video_ids: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        width = cache.opened.manifest.layout.feature_dim
        wanted = video_ids[: cache.capacity]
        # Least recently used first, so that the cache orders them as they were.
        for stop in range(len(wanted), 0, -_PER_STEP):
            step = wanted[max(0, stop - _PER_STEP) : stop]
            generation = cache.generation
            found = zip(step, await self._state.videos(step), strict=True)
            fit = {i: v for i, v in found if v is not None and len(v.features) == width}
            rows = await loop.run_in_executor(
                self._executor, encode, cache.opened, list(fit.values())
            )
            cache.put(dict(zip(fit, rows, strict=True)), generation=generation)
