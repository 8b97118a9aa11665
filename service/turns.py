"""How many rankings are under way at a time; others wait in the order in which they came."""

from __future__ import annotations

import asyncio


class Turns:
    """Counts. For one event loop.

    In turns, since were all begun together that wait, each would find its data gone from the caches,
    and nothing new would be read, let alone refused, before all of them are done.

    Args:
        limit: under way at a time.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def __aenter__(self) -> None:
        await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._free.release()

    def take(self) -> bool:
        """Take a turn if one is free and nobody waits for it; whoever did gives it back."""
        if self._free.locked():
            return False
        try:
            self._free.acquire().send(None)
        except StopIteration:
            return True
        raise AssertionError("one that is free is taken without waiting")

    def give_back(self) -> None:
        """Give a turn back that :meth:`take` took."""
        self._free.release()
