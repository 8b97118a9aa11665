"""What happened, kept in plain lists and handed to Prometheus many at a time.

A ranking counts and observes a dozen things, each of which is a handful of calls. One by one among
all else they find their code gone from the caches: with several workers, whose metrics lie in files,
they took 3 % more of a ranking's CPU time.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

SECONDS: Final = 0.02
"""How long anything is kept."""
_MOST: Final = 256
"""Observations; handed over at once they take some 0.2 ms."""


class Kept:
    """Keeps what one event loop observes and counts; without a loop nothing is kept."""

    def __init__(self) -> None:
        self._observed: list[tuple[Histogram, float]] = []
        self._counted: dict[Counter, float] = {}
        self._shown: dict[Gauge, float] = {}
        self._waits = False

    def observe(self, histogram: Histogram, value: float) -> None:
        """Observe a value, soon."""
        self._observed.append((histogram, value))
        if not self._waits or len(self._observed) >= _MOST:
            self._wait()

    def count(self, counter: Counter, amount: float = 1.0) -> None:
        """Count, soon."""
        self._counted[counter] = self._counted.get(counter, 0.0) + amount
        if not self._waits:
            self._wait()

    def show(self, gauge: Gauge, value: float) -> None:
        """Show a value, soon, unless there is another by then."""
        self._shown[gauge] = value
        if not self._waits:
            self._wait()

    def flush(self) -> None:
        """Hand everything over."""
        self._waits = False
        observed, self._observed = self._observed, []
        counted, self._counted = self._counted, {}
        shown, self._shown = self._shown, {}
        for histogram, value in observed:
            histogram.observe(value)
        for counter, amount in counted.items():
            counter.inc(amount)
        for gauge, value in shown.items():
            gauge.set(value)

    def _wait(self) -> None:
        if self._waits:
            self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._waits = True
        loop.call_later(SECONDS, self.flush)
