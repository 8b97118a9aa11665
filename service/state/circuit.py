"""A circuit that opens after failures: who finds Redis gone need not wait to find it out again."""

from __future__ import annotations

import random
import time
from typing import Final

_FAILURES: Final = 5
_OPEN_SECONDS: Final = 0.25
_OPEN_SECONDS_MOST: Final = 2.0


class StateDownError(Exception):
    """Redis cannot be reached, is too slow, or refuses to work."""


class Circuit:
    """Lets nothing through for a while after several failures in a row, then one probe.

    Args:
        failures: in a row, after which it opens.
        open_seconds: for how long at first; doubles with each failed probe, with jitter.
    """

    def __init__(self, failures: int = _FAILURES, open_seconds: float = _OPEN_SECONDS) -> None:
        self._limit = failures
        self._first_seconds = open_seconds
        self._seconds = open_seconds
        self._failures = 0
        self._closed_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused without trying."""
        return self._failures >= self._limit

    def enter(self) -> bool:
        """Ask to make a call; return whether it is the probe.

        Raises:
            StateDownError: it is open.
        """
        if not self.is_open:
            return False
        wait = self._closed_at - time.monotonic()
        if wait > 0 or self._probing:
            raise StateDownError(f"Redis does not answer: next try in {max(wait, 0.0):.2f} s")
        self._probing = True
        return True

    def leave(self, *, probe: bool) -> None:
        """Say that a call ended, with an outcome or without one.

        A probe without one was given up before Redis answered, by a caller with little time:
        were the next caller to try at once, all of them would wait in vain, one after another.
        """
        if not probe:
            return
        self._probing = False
        if self.is_open and self._closed_at <= time.monotonic():
            self._close(self._first_seconds)

    def succeed(self) -> None:
        """Say that Redis answered."""
        self._failures = 0
        self._seconds = self._first_seconds

    def fail(self, *, probe: bool) -> None:
        """Say that it did not."""
        self._failures += 1
        if not self.is_open or (self._failures > self._limit and not probe):
            return
        self._close(self._seconds)
        self._seconds = min(2 * self._seconds, _OPEN_SECONDS_MOST)

    def _close(self, seconds: float) -> None:
        # Jitter, so that the processes do not all come back at once.
        self._closed_at = time.monotonic() + seconds * random.uniform(0.75, 1.25)
