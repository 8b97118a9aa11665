"""Three graphs opened as one model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from model_store import Draft, GoldenMismatchError, GraphInvalidError, Model, click_probabilities


def test_profile_of_one_is_profiles_of_many(tiny_model: Model) -> None:
    """One user's profile does not depend on who else is asked about."""
    rng = np.random.default_rng(1)
    histories = [rng.normal(size=(n, 4)).astype(np.float32) for n in (0, 1, 3, 4)]
    padded = np.zeros((4, 4, 4), np.float32)
    for user, rows in enumerate(histories):
        padded[user, : len(rows)] = rows
    together = tiny_model.profiles(padded.reshape(4, 2, 2, 4), np.array([0, 1, 3, 4]))

    for user, rows in enumerate(histories):
        alone = tiny_model.profile(rows)
        np.testing.assert_allclose(alone, together[user, : len(alone)], rtol=1e-6)


def test_probabilities_are_the_logistic_of_logits() -> None:
    """Probabilities stay between 0 and 1, without overflow, however large the logit."""
    logits = np.array([1e3, 0.0, -1e3], np.float32)

    np.testing.assert_allclose(click_probabilities(logits), [1.0, 0.5, 0.0])


def test_nobody_and_nothing_can_be_asked(tiny_model: Model) -> None:
    """No video gives no row, no candidate gives no logit."""
    rows = tiny_model.encode_videos(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))

    assert rows.shape == (0, 4)
    assert tiny_model.logits(np.zeros((2, 5), np.float32), rows).shape == (0,)


def test_a_golden_case_within_tolerance_is_proven(tiny_model: Model, draft: Draft) -> None:
    """Proving returns the largest deviation, and refuses one above the tolerance."""
    worst = tiny_model.prove(draft.golden, tolerance=1e-4)

    assert 0 <= worst < 1e-5
    with pytest.raises(GoldenMismatchError, match="allowed is -1"):
        tiny_model.prove(draft.golden, tolerance=-1)


def test_a_graph_that_does_not_load_is_named(
    draft: Draft, with_head: Callable[[bytes], Draft]
) -> None:
    """The error names the graph that does not load."""
    with pytest.raises(GraphInvalidError, match=r"score_head\.onnx cannot be loaded"):
        Model(with_head(b"").graphs, draft.layout)
