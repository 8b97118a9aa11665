"""What happened, kept in plain lists and handed to Prometheus many at a time.

A ranking counts and observes a dozen things, each of which is a handful of calls. One by one among
all else they find their code gone from the caches: with several workers, whose metrics lie in files,
they took 3 % more of a ranking's CPU time.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Counter, Gauge

from service.histogram import BulkHistogram

SECONDS: Final = 0.02
"""How long anything is kept."""
_MOST: Final = 256
"""Observations of one histogram: nobody waits for more to be handed over."""


class Kept:
    """Keeps what is observed and counted on an event loop. For one loop, and not for other threads.

    Where no loop runs there is nothing to wait for, and nothing is kept.
    """

    def __init__(self) -> None:
        self._observed: dict[BulkHistogram, list[float]] = {}
        self._counted: dict[Counter, float] = {}
        self._shown: dict[Gauge, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def observe(self, histogram: BulkHistogram, value: float) -> None:
        """Observe a value, soon."""
        values = self._observed.get(histogram)
        if values is None:
            values = self._observed[histogram] = []
        values.append(value)
        if self._timer is None:
            self._wait()
        elif len(values) >= _MOST:
            self._hand_over()

    def count(self, counter: Counter, amount: float = 1.0) -> None:
        """Count, soon."""
        self._counted[counter] = self._counted.get(counter, 0.0) + amount
        if self._timer is None:
            self._wait()

    def show(self, gauge: Gauge, value: float) -> None:
        """Show a value, soon, unless there is another by then."""
        self._shown[gauge] = value
        if self._timer is None:
            self._wait()

    def flush(self) -> None:
        """Hand everything over now, and wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hand_over()

    def _wait(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._hand_over()
        else:
            self._timer = loop.call_later(SECONDS, self.flush)

    def _hand_over(self) -> None:
        observed, self._observed = self._observed, {}
        counted, self._counted = self._counted, {}
        shown, self._shown = self._shown, {}
        for histogram, values in observed.items():
            histogram.observe_all(values)
        for counter, amount in counted.items():
            counter.inc(amount)
        for gauge, value in shown.items():
            gauge.set(value)
