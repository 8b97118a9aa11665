"""The compiled head computes what its numbers say, each candidate by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import (
    COMPILED_HEAD,
    CPU,
    GRAPHS_ONLY,
    CompiledHead,
    Device,
    Draft,
    GoldenMismatchError,
    GraphInvalidError,
    HeadWeights,
    Model,
    ModelStore,
    find_device,
)

from .conftest import LAYOUT
from .heads import WEIGHTS, head, in_numpy, inputs

ROOT = Path(__file__).parents[2]

usable = pytest.mark.skipif(not COMPILED_HEAD.ways, reason=COMPILED_HEAD.why_not)
each_way = [
    pytest.param(512, marks=pytest.mark.skipif(512 not in COMPILED_HEAD.ways, reason="no AVX-512")),
    pytest.param(256, marks=pytest.mark.skipif(256 not in COMPILED_HEAD.ways, reason="no AVX2")),
]


def test_it_is_built_where_there_is_a_compiler() -> None:
    """Without it these tests would be skipped, and nobody would notice."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "linux" or shutil.which("g++") is None or not headers.exists():
        pytest.skip("no compiler, or no headers: apt-get install g++ python3-dev")
    assert COMPILED_HEAD.module is not None


@pytest.mark.parametrize("way", each_way)
@given(
    units=st.integers(1, 40),
    width=st.integers(1, 40),
    hidden=st.integers(1, 40),
    blocks=st.integers(1, 20),
    count=st.integers(0, 40),
    interacts=st.booleans(),
    seed=st.integers(0, 999),
)
def test_it_computes_what_its_numbers_say(
    way: int,
    units: int,
    width: int,
    hidden: int,
    blocks: int,
    count: int,
    interacts: bool,
    seed: int,
) -> None:
    """Whatever the sizes: none needs to be a multiple of what a register holds."""
    weights = head(units, width, hidden, interacts=interacts, seed=seed, scale=0.3)
    profile, rows = inputs(weights, blocks, count, seed)

    logits = CompiledHead(weights, way).logits(profile, rows)

    np.testing.assert_allclose(logits, in_numpy(weights, profile, rows), rtol=2e-5, atol=2e-5)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("way", each_way)
@given(st.lists(st.integers(0, 49), max_size=70), st.integers(1, 9), st.booleans())
def test_a_candidates_logit_is_its_own(
    way: int, slots: Sequence[int], blocks: int, interacts: bool
) -> None:
    """Bit for bit: alone or among others, from where it lies in a wider table or from a copy."""
    weights = head(5, 16, 12, interacts=interacts)
    profile, table = inputs(weights, blocks, 50, 1)
    wider = np.concatenate([table, np.full((50, 3), np.nan, np.float32)], axis=1)
    compiled, chosen = CompiledHead(weights, way), np.array(slots, np.int64)
    alone = np.concatenate([compiled.logits(profile, table[i : i + 1]) for i in range(50)])

    np.testing.assert_array_equal(compiled.logits(profile, wider, chosen), alone[chosen])
    np.testing.assert_array_equal(compiled.logits(profile, table[chosen]), alone[chosen])


@pytest.mark.parametrize("way", each_way)
def test_scores_as_far_apart_as_they_may_be(way: int) -> None:
    """80 either way, where a power of e is near the end of what a float holds."""
    weights = HeadWeights(
        np.ones((1, 1), np.float32),
        np.full((1, 1), 80.0, np.float32),
        np.ones((1, 1), np.float32),
        np.zeros((0, 1), np.float32),
        np.ones(1, np.float32),
        np.zeros((), np.float32),
    )
    compiled, row = CompiledHead(weights, way), np.array([[0.0, 10.0]], np.float32)

    # The second block's score is 80 above the first one's, then 80 below it.
    up = compiled.logits(np.array([[0.0], [1.0]], np.float32), row)
    down = compiled.logits(np.array([[1.0], [0.0]], np.float32), row)

    assert up.tolist() == down.tolist() == [11.0]


@pytest.mark.parametrize("way", each_way)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gets_what_the_formula_gives(way: int, bad: float) -> None:
    """NaN mostly, and no wrong number; wherever in the row it is, no neighbour suffers."""
    weights = head(4, 8, 6, interacts=True)
    profile, rows = inputs(weights, 3, 20, 2)
    compiled = CompiledHead(weights, way)
    good = compiled.logits(profile, rows)
    for place in range(rows.shape[1]):
        spoilt = rows.copy()
        spoilt[7, place] = bad
        with np.errstate(invalid="ignore"):
            expected = in_numpy(weights, profile, spoilt)
        found = compiled.logits(profile, spoilt)
        np.testing.assert_array_equal(np.delete(found, 7), np.delete(good, 7))
        if np.isfinite(expected[7]):
            np.testing.assert_allclose(found[7], expected[7], rtol=1e-4)
        else:
            assert not np.isfinite(found[7])


@usable
@pytest.mark.parametrize("slot", [-1, 3, 2**40])
def test_no_row_beyond_the_table_is_read(slot: int) -> None:
    """The first such slot is named."""
    compiled = CompiledHead.of(head(1, 2, 1))
    assert compiled is not None
    table, slots = np.zeros((3, 2), np.float32), np.array([0, slot], np.int64)
    with pytest.raises(IndexError, match=rf"slot {slot} at 1, the table has 3 rows"):
        compiled.logits(np.zeros((1, 2), np.float32), table, slots)


@usable
def test_arrays_that_do_not_fit_are_refused() -> None:
    """Of another type, another shape, or not side by side."""
    weights = head(2, 4, 3)
    found = CompiledHead.of(weights)
    assert found is not None
    compiled: Any = found
    profile, rows = inputs(weights, 2, 6, 0)
    slots = np.arange(6)
    with pytest.raises(TypeError, match="table has 2 dimensions of 8 bytes"):
        compiled.logits(profile, rows.astype(np.float64))
    with pytest.raises(TypeError, match="slots has 1 dimensions of 4"):
        compiled.logits(profile, rows, slots.astype(np.int32))
    for kind, stranger in (("i", np.int32), (">f", ">f4")):
        with pytest.raises(TypeError, match=f"table holds numbers of type {kind}, not one of fd"):
            compiled.logits(profile, rows.astype(stranger))
    with pytest.raises(TypeError, match="slots holds numbers of type d"):
        compiled.logits(profile, rows, slots.astype(np.float64))
    for wrong in (
        (profile[:0], rows, slots),
        (profile[:, :3], rows, slots),
        (profile, rows[:, :4], slots),
        (profile, rows.T.copy().T, slots),
    ):
        with pytest.raises(ValueError, match=r"profile \[1 or more, 4\]; table \[any, 5 or more\]"):
            compiled.logits(*wrong)
    with pytest.raises(ValueError, match="this processor has no way 128"):
        CompiledHead(weights, 128).logits(profile, rows)
    prepare: Any = COMPILED_HEAD.module.prepare
    with pytest.raises(ValueError, match=r"key \[H, D\]"):
        prepare(weights.key, weights.score, weights.hidden[:2], None, weights.output, 0.0)
    nothing = np.zeros((0, 1 << 59), np.float32)
    with pytest.raises(ValueError, match=r"none above 2\*\*20"):
        prepare(nothing, nothing.T.copy(), nothing, None, weights.output[:0], 0.0)


@usable
def test_where_the_graph_is_faster_there_is_none() -> None:
    """Few registers and many units: what is kept of them would not stay in the first cache."""
    many = CompiledHead.of(head(200, 4, 3))

    assert (many is not None) is (512 in COMPILED_HEAD.ways)
    assert CompiledHead.of(head(64, 4, 3)) is not None


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("None", "import"),
        ("types.SimpleNamespace(INTERFACE=0)", "built for interface 0, not 1: install again"),
        ("types.SimpleNamespace(INTERFACE=1, ways=tuple)", "this processor has no AVX2"),
    ],
)
def test_without_it_the_graph_scores(module: str, why: str, tmp_path: Path) -> None:
    """Where it could not be built, an update left an older one behind, or registers are narrow."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys, types\nsys.modules['model_store._head'] = {module}\n"
    )
    code = (
        "from model_store import COMPILED_HEAD, CompiledHead\n"
        f"assert {why!r} in COMPILED_HEAD.why_not, COMPILED_HEAD.why_not\n"
        "assert CompiledHead.of(None) is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def draft_with(draft: Draft, weights: HeadWeights) -> Draft:
    """The tiny model whose head's graph brings numbers along."""
    model = onnx.load_from_string(draft.graphs["score_head"])
    onnx.helper.set_model_props(model, weights.to_metadata())
    return replace(draft, graphs={**draft.graphs, "score_head": model.SerializeToString()})


@usable
def test_numbers_of_another_head_are_not_published(draft: Draft, store: ModelStore) -> None:
    """Golden answers are asked of all that may score, not only of the graph."""
    with pytest.raises(GoldenMismatchError):
        store.publish(draft_with(draft, WEIGHTS))
    assert store.versions() == []


def test_a_model_refuses_numbers_that_do_not_fit(draft: Draft) -> None:
    """Also where the graph would score."""
    strange = draft_with(draft, head(2, LAYOUT.profile_dim, 3))
    with pytest.raises(GraphInvalidError, match="take 5"):
        Model(strange.graphs, strange.layout, device=GRAPHS_ONLY)


@usable
def test_a_model_scores_with_what_it_is_told_to(draft: Draft) -> None:
    """The compiled head, tile by tile too; the graph if that is wanted, or buffers that stay."""
    with_numbers = draft_with(draft, WEIGHTS)
    model, graph, bound = (
        Model(with_numbers.graphs, LAYOUT, device=device)
        for device in (CPU, GRAPHS_ONLY, Device(bind=True))
    )
    profile, rows = inputs(WEIGHTS, 2, 9, 3)
    expected = in_numpy(WEIGHTS, profile, rows)

    np.testing.assert_allclose(model.logits(profile, rows), expected, atol=1e-5)
    tiles = model.tile_logits(np.stack([profile, profile]), np.stack([rows, rows[::-1]]))
    np.testing.assert_array_equal(tiles, [model.logits(profile, r) for r in (rows, rows[::-1])])
    assert model.tile_logits(profile[None][:0], rows[None][:0]).shape == (0, 9)
    assert graph.compiled_head is bound.compiled_head is None
    assert find_device("cpu", graphs_only=True) == GRAPHS_ONLY
    assert find_device("cpu") == CPU


def test_rounded_numbers_take_half_the_room() -> None:
    """Without moving."""
    rounded = HeadWeights(
        *(
            getattr(WEIGHTS, name).astype(np.float16).astype(np.float32)
            for name in HeadWeights.__slots__
        )
    )
    metadata = rounded.to_metadata()
    found = HeadWeights.from_metadata(metadata, LAYOUT)

    assert len(metadata["score_head.hidden"]) < len(WEIGHTS.to_metadata()["score_head.hidden"])
    assert found is not None
    np.testing.assert_array_equal(found.hidden, rounded.hidden)
    assert found.hidden.dtype == np.float32
