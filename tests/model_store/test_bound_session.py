"""A run on buffers that stay answers as a plain one, whatever ran before or runs beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from model_store import Device, Draft, Layout, Model
from model_store.bound_session import BoundSession


@pytest.fixture
def session(draft: Draft) -> ort.InferenceSession:
    return ort.InferenceSession(draft.graphs["score_head"], providers=["CPUExecutionProvider"])


def inputs(seed: int, layout: Layout) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tiles, blocks, width = rng.integers(1, 4, 3)
    sizes = {
        "user_profile": (tiles, blocks, layout.profile_dim),
        "candidate_rows": (tiles, width, layout.candidate_dim),
    }
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def test_bound_is_plain_bit_for_bit(session: ort.InferenceSession, draft: Draft) -> None:
    """From many threads, over shapes that come and go; an answer is the caller's to keep."""
    bound = BoundSession(session, "cpu", shapes=5)
    cases = [inputs(seed, draft.layout) for seed in range(200)]

    def run(case: dict[str, np.ndarray]) -> np.ndarray:
        return bound.run(case, case["candidate_rows"].shape[:2])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, cases))

    assert len(bound) == 5
    for case, answer in zip(cases, found, strict=True):
        np.testing.assert_array_equal(answer, session.run(None, case)[0])


def test_a_run_that_fails_harms_no_later_one(session: ort.InferenceSession, draft: Draft) -> None:
    """Its buffers are not used again."""
    bound = BoundSession(session, "cpu")
    wrong = {**inputs(1, draft.layout), "user_profile": np.zeros((2, 2, 99), np.float32)}
    with pytest.raises(Exception, match="user_profile"):
        bound.run(wrong, wrong["candidate_rows"].shape[:2])

    assert len(bound) == 0
    right = inputs(2, draft.layout)
    answer = bound.run(right, right["candidate_rows"].shape[:2])
    np.testing.assert_array_equal(answer, session.run(None, right)[0])


def test_a_model_on_buffers_proves_its_golden_answers(draft: Draft) -> None:
    """No candidate at all goes the plain way."""
    model = Model(draft.graphs, draft.layout, device=Device(bind=True))
    rows = np.zeros((0, draft.layout.row_dim), np.float32)

    assert model.prove(draft.golden, tolerance=1e-5) < 1e-5
    assert model.logits(model.profile(rows), rows).shape == (0,)
