"""The compiled steps are those in Python, and refuse what would reach beyond an array."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service import steps
from service.fingerprints import Fingerprints
from service.steps import COMPILED, IN_PYTHON, LINE, STEPS

ROOT = Path(__file__).parents[2]

both = pytest.mark.skipif(COMPILED is None, reason="not compiled: apt-get install g++ python3-dev")
each_way = pytest.mark.parametrize(
    "way", [pytest.param(IN_PYTHON, id="python"), pytest.param(COMPILED, id="compiled", marks=both)]
)
ids = st.text(min_size=1, max_size=12)


def compiled() -> steps.Steps:
    assert COMPILED is not None
    return COMPILED


def test_the_compiled_part_is_built_where_there_is_a_compiler() -> None:
    """Without it half of these tests would be skipped, and nobody would notice."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "linux" or shutil.which("g++") is None or not headers.exists():
        pytest.skip("no compiler, or no headers: apt-get install g++ python3-dev")
    assert COMPILED is not None
    assert STEPS is COMPILED


@both
@given(st.lists(ids, max_size=60, unique=True), st.lists(ids, max_size=60), st.integers(1, 64))
def test_keys_are_found(kept: list[str], strangers: list[str], room: int) -> None:
    """Those kept, those that found no room, and those never seen, in any order and repeated."""
    table = Fingerprints(room)
    for number, key in enumerate(kept):
        table.add(key, number)
    asked = [*strangers, *kept, *reversed(kept), *strangers]

    slots, found = compiled().find(asked, table._hashes, table._numbers)
    expected, count = IN_PYTHON.find(asked, table._hashes, table._numbers)

    np.testing.assert_array_equal(slots, expected)
    assert slots.dtype == np.int64
    assert found == count == int((expected >= 0).sum())


@each_way
def test_a_key_is_found_once_it_is_added(way: steps.Steps) -> None:
    """By the number that was given for it; dropped, it is found no more."""
    table = Fingerprints(100)
    assert table.add("a", 7)
    assert table.add("b", 8)

    assert way.find(["b", "c", "a"], table._hashes, table._numbers)[0].tolist() == [8, -1, 7]
    table.drop("a")
    assert way.find(["b", "c", "a"], table._hashes, table._numbers)[0].tolist() == [8, -1, -1]


@both
@given(st.data(), st.integers(1, 30), st.integers(1, 40), st.integers(1, 40))
def test_rows_are_copied(data: st.DataObject, height: int, width: int, more: int) -> None:
    """Whole rows, and the first part of wider ones."""
    table = np.random.default_rng(height).standard_normal((height, width + more)).astype(np.float32)
    chosen = data.draw(st.lists(st.integers(0, height - 1), max_size=40))
    slots = np.array(chosen, np.int64)

    for part in (table, table[:, :width]):
        rows = compiled().gather(part, slots)
        np.testing.assert_array_equal(rows, IN_PYTHON.gather(part, slots))
        np.testing.assert_array_equal(rows, part[slots])
        assert rows.flags.c_contiguous


scores = hnp.arrays(
    np.float64,
    st.integers(0, 300),
    elements=st.one_of(
        st.floats(0.0, 1.0),
        st.sampled_from([0.0, -0.0, 0.5, 1.0, float("nan"), float("inf"), -float("inf"), 5e-324]),
        st.floats(),
    ),
)


@both
@given(scores, st.none() | st.integers(0, 400))
def test_scores_are_ordered(given_scores: np.ndarray, limit: int | None) -> None:
    """Ties by place, no score at the end, cut where asked."""
    places, best, unranked = compiled().order(given_scores, limit)
    expected = IN_PYTHON.order(given_scores, limit)

    np.testing.assert_array_equal(places, expected[0])
    np.testing.assert_array_equal(best, expected[1])
    assert unranked == expected[2]
    assert places.dtype == np.int64


@both
@given(st.lists(st.text(), min_size=1, max_size=20), st.data())
def test_rows_are_written(keys: list[str], data: st.DataObject) -> None:
    """Every text and every number reads back as it was, whoever wrote it."""
    chosen = data.draw(st.lists(st.integers(0, len(keys) - 1), max_size=40))
    places = np.array(chosen, np.int64)
    given_scores = data.draw(hnp.arrays(np.float64, len(chosen), elements=st.floats()))

    written = compiled().write(keys, places, given_scores)
    expected = IN_PYTHON.write(keys, places, given_scores)

    rows = json.loads(b"[" + written + b"]")
    assert rows == json.loads(b"[" + expected + b"]")
    assert [repr(row["score"]) for row in rows] == [
        repr(score) if math.isfinite(score) else "None" for score in given_scores.tolist()
    ]


@each_way
def test_a_row_says_which_candidate_it_is(way: steps.Steps) -> None:
    """By its id and its place in the request; a whole number is written as a fraction."""
    written = way.write(["a", 'b"\\\n', "ü"], np.array([1, 2]), np.array([1.0, 0.25]))

    assert written == (
        b'{"video_id":"b\\"\\\\\\n","index":1,"rank":1,"score":1.0},'
        b'{"video_id":"\xc3\xbc","index":2,"rank":2,"score":0.25}'
    ).replace(b"\\n", b"\\u000a" if way is COMPILED else b"\\n")


@both
@pytest.mark.parametrize("place", [-1, 1, 2**40])
def test_no_key_beyond_the_list_is_written(place: int) -> None:
    """The first such place is named."""
    with pytest.raises(IndexError, match=rf"place {place} at 1, there are 1 keys"):
        compiled().write(["a"], np.array([0, place]), np.zeros(2))


@both
def test_text_that_is_not_unicode_is_not_written() -> None:
    """Half a character has no bytes; the door refuses it before."""
    with pytest.raises(UnicodeEncodeError):
        compiled().write(["a", "\ud800"], np.array([0, 1]), np.zeros(2))


@both
@pytest.mark.parametrize("slot", [-1, 3, 2**40])
def test_no_row_beyond_the_table_is_read(slot: int) -> None:
    """The first such slot is named."""
    with pytest.raises(IndexError, match=rf"slot {slot} at 1, the table has 3 rows"):
        compiled().gather(np.zeros((3, 2), np.float32), np.array([0, slot], np.int64))


@both
def test_arrays_of_another_form_are_refused() -> None:
    """Of another type, another shape, or not side by side."""
    good = np.zeros((4, 2), np.float32)
    slots = np.zeros(2, np.int64)
    hashes, numbers = np.zeros((2, LINE), np.int64), np.zeros(2 * LINE, np.int32)
    strangers: Any = compiled()
    with pytest.raises(TypeError, match="table has 2 dimensions of 8 bytes an item, not 2 of 4"):
        strangers.gather(good.astype(np.float64), slots)
    with pytest.raises(ValueError, match="side by side"):
        strangers.gather(good.T.copy().T, slots)
    with pytest.raises(TypeError, match="slots has 1 dimensions of 4"):
        strangers.gather(good, slots.astype(np.int32))
    with pytest.raises(ValueError, match="lines a power of two"):
        strangers.find(["a"], np.zeros((3, LINE), np.int64), np.zeros(3 * LINE, np.int32))
    with pytest.raises(ValueError, match="numbers"):
        strangers.find(["a"], hashes, numbers[:-1])
    with pytest.raises(TypeError, match="key 1 is int, not str"):
        strangers.find(["a", 1], hashes, numbers)
    with pytest.raises(TypeError, match="scores has 1 dimensions of 4"):
        strangers.order(np.zeros(3, np.float32), None)
    with pytest.raises(ValueError, match="as many as places"):
        strangers.write(["a"], slots, np.zeros(3))
    with pytest.raises(TypeError, match="key 0 is bytes, not str"):
        strangers.write([b"a"], slots, np.zeros(2))


def _check_with(module: str, code: str, directory: Path) -> None:
    """Run assertions in a process of its own that finds this in the compiled part's place."""
    (directory / "sitecustomize.py").write_text(
        f"import sys, types\nsys.modules['service._ranking'] = {module}\n"
    )
    path = os.pathsep.join([str(directory), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", f"from service import steps\n{code}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_library_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """As one that an update of the sources left behind; why is told."""
    code = (
        "assert steps.COMPILED is None and steps.STEPS is steps.IN_PYTHON\n"
        "assert 'built for interface 1, not 2' in steps.WHY_NOT, steps.WHY_NOT\n"
    )
    _check_with("types.ModuleType('_ranking')", code, tmp_path)


def test_without_the_compiled_part_everything_is_in_python(tmp_path: Path) -> None:
    """As where it could not be built: nothing else is missing."""
    code = (
        "import numpy as np; from service.rows import gather\n"
        "assert steps.COMPILED is None and steps.STEPS is steps.IN_PYTHON\n"
        "places, scores, rest = steps.STEPS.order(np.array([.1, .3, .2]), 2)\n"
        "assert places.tolist() == [1, 2] and scores.tolist() == [.3, .2] and rest == []\n"
        "assert steps.STEPS.write(['a', 'b', 'c'], places, scores).startswith(b'{\"video_id\":\"b')\n"
    )
    _check_with("None", code, tmp_path)
