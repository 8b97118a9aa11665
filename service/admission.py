"""Who may wait for the model, and for how long: bounded in candidate rows, not in requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from service import metrics

P = ParamSpec("P")
T = TypeVar("T")


class OverloadedError(Exception):
    """There is no room for more candidates; nothing was done."""


class DeadlineError(Exception):
    """The caller's time was up before the answer was ready; what was left was not done."""


class Admission:
    """Keeps count of the candidates that are being ranked or wait to be.

    Args:
        limit: candidates at most; a single request may be larger when nothing else is here.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.rows = 0
        """Candidates here now."""

    @property
    def full(self) -> bool:
        """Whether not even one more candidate would be let in."""
        return self.rows >= self._limit

    @contextmanager
    def admitted(self, rows: int) -> Iterator[None]:
        """Let candidates in.

        Raises:
            OverloadedError: there is no room.
        """
        if self.rows and self.rows + rows > self._limit:
            raise OverloadedError(
                f"{self.rows} candidates are being ranked or wait, {self._limit} may: try again"
            )
        self.rows += rows
        metrics.ROWS_IN_FLIGHT.set(self.rows)
        try:
            yield
        finally:
            self.rows -= rows
            metrics.ROWS_IN_FLIGHT.set(self.rows)


async def run_before(
    deadline: float, executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run work in a thread, unless its time (``time.monotonic()``) is up when its turn comes.

    Raises:
        DeadlineError: it was.
    """

    def job() -> T:
        if time.monotonic() > deadline:
            raise DeadlineError("the deadline passed in the queue")
        return work(*args, **kwargs)

    return await asyncio.get_running_loop().run_in_executor(executor, job)
