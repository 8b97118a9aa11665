"""The row cache: bounded by bytes, the least recently used out, never a byte changed underfoot."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from model_store import Layout
from service import fingerprints, rows, steps
from service.rows import RowCache

WIDTH = 4
LAYOUT = Layout(
    feature_dim=3,
    num_categories=2,
    num_blocks=1,
    block_size=1,
    row_dim=WIDTH,
    candidate_dim=WIDTH,
    profile_dim=2,
)
OPENED = SimpleNamespace(manifest=SimpleNamespace(layout=LAYOUT))
ids = st.sampled_from([f"v{i}" for i in range(12)])


def cache_of(size: int) -> RowCache:
    return RowCache(OPENED, size * WIDTH * 4)  # type: ignore[arg-type]


def row(value: float) -> np.ndarray:
    return np.full(WIDTH, value, np.float32)


def test_capacity_is_in_bytes() -> None:
    """As many rows as fit, and one at least."""
    assert cache_of(7).capacity == 7
    assert RowCache(OPENED, 1).capacity == 1  # type: ignore[arg-type]


def test_the_least_recently_used_goes_first() -> None:
    """Looking a row up keeps it."""
    cache = cache_of(8)
    cache.put({f"v{i}": row(i) for i in range(8)}, generation=0)
    cache.look_up(["v0"])
    cache.put({"new": row(9)}, generation=0)

    assert cache.look_up(["v1"])[0] == -1
    assert cache.look_up(["v0"])[0] >= 0
    assert cache.look_up(["new"])[0] >= 0
    assert cache.recent(2) == ["new", "v0"]


@pytest.mark.parametrize("dropped", [["v"], None])
def test_a_row_read_before_its_video_changed_is_not_kept(dropped: list[str] | None) -> None:
    """It was encoded from the old features."""
    cache = cache_of(4)
    generation = cache.generation
    cache.drop(dropped)
    cache.put({"v": row(1)}, generation=generation)

    assert cache.look_up(["v"])[0] == -1


class Machine(RuleBasedStateMachine):
    """Looks up, puts, drops and reads under pins; compares with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(5)
        self.values: dict[str, float] = {}
        self.serial = 0.0
        self.pins: list[tuple[object, np.ndarray, np.ndarray]] = []

    @rule(chosen=st.lists(ids, min_size=1, max_size=6, unique=True))
    def put(self, chosen: list[str]) -> None:
        here = [video_id for video_id in chosen if self.cache.look_up([video_id])[0] < 0]
        new = {}
        for video_id in here:
            self.serial += 1
            new[video_id] = row(self.serial)
        self.cache.put(new, generation=self.cache.generation)
        for video_id, value in new.items():
            if self.cache.look_up([video_id])[0] >= 0:
                self.values[video_id] = float(value[0])

    @rule(chosen=st.lists(ids, max_size=3, unique=True) | st.none())
    def drop(self, chosen: list[str] | None) -> None:
        self.cache.drop(chosen)
        for video_id in self.values if chosen is None else chosen:
            assert self.cache.look_up([video_id])[0] == -1

    @rule(chosen=st.lists(ids, min_size=1, max_size=4))
    def pin(self, chosen: list[str]) -> None:
        pinned = self.cache.pinned()
        pinned.__enter__()
        slots = self.cache.look_up(chosen)
        slots = slots[slots >= 0]
        self.pins.append((pinned, slots, self.cache.table[slots].copy()))

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        pinned, slots, before = self.pins.pop(0)
        np.testing.assert_array_equal(self.cache.table[slots], before)
        pinned.__exit__(None, None, None)  # type: ignore[attr-defined]

    @invariant()
    def what_is_pinned_is_as_it_was(self) -> None:
        for _, slots, before in self.pins:
            np.testing.assert_array_equal(self.cache.table[slots], before)

    @invariant()
    def what_is_here_is_what_was_put(self) -> None:
        assert len(self.cache) <= self.cache.capacity
        for video_id, value in self.values.items():
            slot = self.cache.look_up([video_id])[0]
            if slot >= 0:
                assert self.cache.table[slot, 0] == value


TestMachine = Machine.TestCase


class PythonMachine(Machine):
    """The same without the compiled part, each look-up as one of many ids."""

    @initialize()
    def without_compiled(self) -> None:
        self.patch = pytest.MonkeyPatch()
        in_python = replace(steps.IN_PYTHON, many=1)
        self.patch.setattr(rows, "STEPS", in_python)
        self.patch.setattr(fingerprints, "STEPS", in_python)

    def teardown(self) -> None:
        self.patch.undo()


TestPythonMachine = PythonMachine.TestCase


def test_many_ids_are_found_as_one_by_one_are() -> None:
    """Also those whose line of the table was full, and beside ids that are nowhere."""
    cache = cache_of(4_000)
    known = {f"video-{i}": row(i) for i in range(4_000)}
    cache.put(known, generation=0)
    asked = [f"video-{i}" for i in range(0, 8_000, 3)]

    one_by_one = [int(cache.look_up([video_id])[0]) for video_id in asked]

    assert cache.look_up(asked).tolist() == one_by_one
    assert [slot >= 0 for slot in one_by_one] == [video_id in known for video_id in asked]


@pytest.mark.parametrize("count", [1, 99, 100, 1_500])
def test_all_are_found_or_none(count: int) -> None:
    """Also those asked for twice, and where only the dictionary knows one."""
    cache = cache_of(4_000)
    cache.put({f"video-{i}": row(i) for i in range(4_000)}, generation=0)
    asked = [f"video-{i}" for i in range(count)]
    found = cache.look_all_up([*asked, *asked])

    assert found is not None
    assert found.tolist() == [*cache.look_up(asked)] * 2
    assert cache.look_all_up([*asked, "unknown", *asked]) is None
    assert cache.look_all_up([*asked[1:], "unknown"]) is None


class Twin(str):
    """An id whose hash is another's."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 5


def test_an_id_that_cannot_be_told_from_another_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is encoded each time; the first one's row stays what it was."""
    # Only there do ids say what their hash is.
    monkeypatch.setattr(rows, "STEPS", steps.IN_PYTHON)
    cache = cache_of(8)
    first, second = Twin("first"), Twin("second")
    cache.put({first: row(1)}, generation=0)
    cache.put({second: row(2), "other": row(3)}, generation=0)

    assert cache.table[cache.look_up([first])[0], 0] == 1
    assert cache.look_up([second])[0] == -1
    assert cache.table[cache.look_up(["other"])[0], 0] == 3
