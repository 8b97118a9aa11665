"""Who may wait for the model, and for how long: bounded in candidate rows, not in requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service import metrics

_LEARNING: Final = 0.05


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
        self._usual = 1.0
        self.rows = 0
        """Candidates here now."""

    @property
    def full(self) -> bool:
        """Whether a request of the usual size would be refused."""
        return self.rows > 0 and self.rows + self._usual > self._limit

    @contextmanager
    def admitted(self, rows: int) -> Iterator[None]:
        """Let candidates in.

        Raises:
            OverloadedError: there is no room.
        """
        self._usual += _LEARNING * (rows - self._usual)
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
