"""What is kept for a moment is shown soon, whole, and never twice."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge

from service.histogram import BulkHistogram
from service.kept import SECONDS, Kept

BUCKETS = (0.1, 0.2, 0.5)


class Stand:
    """One metric of each kind."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("c", "c", registry=self.registry)
        self.gauge = Gauge("g", "g", registry=self.registry)
        self.histogram = BulkHistogram("h", "h", buckets=BUCKETS, registry=self.registry)

    def shown(self) -> dict[str, float | None]:
        names = ("c_total", "g", "h_count", "h_sum")
        found = {name: self.registry.get_sample_value(name) for name in names}
        for bound in BUCKETS:
            labels = {"le": str(bound)}
            found[str(bound)] = self.registry.get_sample_value("h_bucket", labels)
        return found


def test_without_a_loop_nothing_is_kept() -> None:
    """Nobody would hand it over."""
    stand, kept = Stand(), Kept()
    kept.count(stand.counter, 2)
    kept.show(stand.gauge, 3)
    kept.observe(stand.histogram, 0.15)

    assert (stand.shown()["c_total"], stand.shown()["g"], stand.shown()["0.2"]) == (2, 3, 1)


async def test_it_is_handed_over_after_a_moment() -> None:
    """By itself; of what is shown only the last counts."""
    stand, kept = Stand(), Kept()
    for value in (1, 2):
        kept.count(stand.counter)
        kept.show(stand.gauge, value)
        kept.observe(stand.histogram, value)
    assert stand.shown()["c_total"] == 0
    await asyncio.sleep(5 * SECONDS)
    shown = stand.shown()
    assert (shown["c_total"], shown["g"], shown["h_count"], shown["h_sum"]) == (2, 2, 2, 3)
    await asyncio.sleep(5 * SECONDS)
    assert stand.shown() == shown


async def test_so_many_are_not_kept_longer() -> None:
    """Nobody waits for thousands to be handed over."""
    stand, kept = Stand(), Kept()
    for _ in range(1_000):
        kept.observe(stand.histogram, 0.3)
    shown = stand.shown()["h_count"]
    assert shown is not None
    assert 700 < shown <= 1_000
    # Still one timer, however often it was handed over before its time.
    timer = kept._timer
    kept.observe(stand.histogram, 0.3)
    assert kept._timer is timer
    assert timer is not None
    assert not timer.cancelled()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("cgho"), st.floats(0, 1, allow_nan=False)), max_size=60
    )
)
def test_it_is_what_would_have_been_shown_at_once(steps: list[tuple[str, float]]) -> None:
    """Whenever it is handed over in between."""
    late, now, kept = Stand(), Stand(), Kept()

    async def work() -> None:
        for kind, value in steps:
            if kind == "c":
                kept.count(late.counter, value)
                now.counter.inc(value)
            elif kind == "g":
                kept.show(late.gauge, value)
                now.gauge.set(value)
            elif kind == "h":
                kept.observe(late.histogram, value)
                now.histogram.observe(value)
            else:
                kept.flush()
        kept.flush()

    asyncio.run(work())
    found, expected = late.shown(), now.shown()
    for name, value in expected.items():
        assert abs((found[name] or 0) - (value or 0)) < 1e-9
