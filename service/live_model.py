"""The version that answers now; follows the store's pointer without a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final

from model_store import CPU, Device, ModelStore, ModelStoreError, OpenVersion
from service import metrics

_RETRY_SECONDS: Final = 30.0

_log = logging.getLogger(__name__)


class NoModelError(Exception):
    """No version is open yet."""


class LiveModel:
    """Holds one open version and swaps it when another is promoted.

    A version that cannot be opened leaves the old one in place.

    Args:
        store: where versions are published.
        executor: threads in which versions are opened.
        poll_seconds: how often the pointer is read.
        device: where versions run.
    """

    def __init__(
        self,
        store: ModelStore,
        executor: Executor,
        *,
        poll_seconds: float,
        device: Device = CPU,
    ) -> None:
        self.store = store
        self.device = device
        self._warm: list[Callable[[OpenVersion], Awaitable[object]]] = []
        self._executor = executor
        self._poll_seconds = poll_seconds
        self._open: OpenVersion | None = None
        self._failed: tuple[str, float] | None = None

    def before_swap(self, warm: Callable[[OpenVersion], Awaitable[object]]) -> None:
        """Have something done for a version before it answers."""
        self._warm.append(warm)

    def current(self) -> OpenVersion:
        """Return the version that answers.

        Raises:
            NoModelError: none is open.
        """
        if self._open is None:
            raise NoModelError(
                f"no model version is open: publish one to {self.store.root} and promote it"
            )
        return self._open

    async def open(self) -> None:
        """Open the promoted version.

        Raises:
            ModelStoreError: there is none, or it cannot be used.
        """
        loop = asyncio.get_running_loop()
        await self._swap(await loop.run_in_executor(self._executor, self._opened, None))

    async def follow(self) -> None:
        """Follow the pointer until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._look()
            # Nothing that a store's files hold may end the watch.
            except Exception:  # noqa: BLE001  it is logged
                _log.exception("cannot look for a promoted version")

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            wanted = await loop.run_in_executor(self._executor, self.store.current)
        except ModelStoreError:
            # Nothing promoted: what is open stays.
            return
        if self._open is not None and self._open.manifest.version == wanted:
            return
        if self._failed and self._failed[0] == wanted and time.monotonic() < self._failed[1]:
            return
        try:
            opened = await loop.run_in_executor(self._executor, self._opened, wanted)
        except (ModelStoreError, OSError) as exc:
            self._failed = (wanted, time.monotonic() + _RETRY_SECONDS)
            metrics.MODEL_FAILURES.inc()
            kept = self._open.manifest.version if self._open else "none"
            _log.error("cannot open version %s, keeping %s: %s", wanted, kept, exc)
            return
        await self._swap(opened)

    def _opened(self, version: str | None) -> OpenVersion:
        return self.store.open(version, device=self.device)

    async def _swap(self, opened: OpenVersion) -> None:
        for warm in self._warm:
            await warm(opened)
        old, self._open = self._open, opened
        if old is not None:
            metrics.show_model(old.manifest, serving=False)
        metrics.show_model(opened.manifest, serving=True)
        _log.info("version %s answers now", opened.manifest.version)
