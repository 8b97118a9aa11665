"""Prometheus' histogram, that also takes many values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from prometheus_client import Histogram


class BulkHistogram(Histogram):
    """A histogram.

    The library's own takes half a microsecond for a value, and one and a half where there are several
    workers, whose metrics lie in files; of many at once a value takes a tenth.
    """

    def observe_all(self, values: Sequence[float]) -> None:
        """Observe values, none of them NaN."""
        self._sum.inc(sum(values))
        bounds = self._upper_bounds
        # As the library has it: what equals a bound is below it.
        for place, count in Counter(bisect_left(bounds, value) for value in values).items():
            self._buckets[place].inc(count)
