"""Who may wait for the model, and for how long: bounded in candidate rows, not in requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service import metrics

REQUEST_ROWS: Final = 200
"""What a request costs beside its candidates, in candidates.

On a CPU it is half a millisecond for the one and two microseconds for each of the others. Were it
not counted, a queue of small requests could hold seconds of work.
"""
_LEARNING: Final = 0.05


class OverloadedError(Exception):
    """There is no room for more candidates; nothing was done."""


class DeadlineError(Exception):
    """The caller's time was up before the answer was ready; what was left was not done."""


class Admission:
    """Keeps count of the candidates that are being ranked or wait to be.

    Args:
        limit: candidates at most, each request counted as :data:`REQUEST_ROWS` more; a single
            request may be larger when nothing else is here.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._usual = 1.0
        self.rows = 0
        """Candidates here now, and what their requests count for."""

    @property
    def full(self) -> bool:
        """Whether a request of the usual size would be refused."""
        return self.rows > 0 and self.rows + self._usual > self._limit

    @property
    def busy(self) -> bool:
        """Whether half the room is taken: more than 25 requests of 200 candidates by default."""
        return 2 * self.rows > self._limit

    @contextmanager
    def admitted(self, rows: int) -> Iterator[None]:
        """Let a request's candidates in, and out at the end.

        Raises:
            OverloadedError: there is no room.
        """
        weight = self.enter(rows)
        try:
            yield
        finally:
            self.leave(weight)

    def enter(self, rows: int) -> int:
        """Let a request's candidates in; return what :meth:`leave` takes out again.

        Raises:
            OverloadedError: there is no room.
        """
        weight = rows + REQUEST_ROWS
        self._usual += _LEARNING * (weight - self._usual)
        if self.rows and self.rows + weight > self._limit:
            raise OverloadedError(
                f"{self.rows} candidates are being ranked or wait, each request counted as "
                f"{REQUEST_ROWS} more; {self._limit} may: try again"
            )
        self.rows += weight
        metrics.KEPT.show(metrics.ROWS_IN_FLIGHT, self.rows)
        return weight

    def leave(self, weight: int) -> None:
        """Take out what :meth:`enter` let in."""
        self.rows -= weight
        metrics.KEPT.show(metrics.ROWS_IN_FLIGHT, self.rows)
