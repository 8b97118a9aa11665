"""The loss: cross entropy, and pairs of a click and what its user passed over."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.objective import within_users

rows = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.floats(-4, 4, width=32)),
    min_size=1,
    max_size=12,
)


@given(rows=rows, reach=st.integers(1, 14))
def test_pairs_within_users_are_all_that_the_definition_names(
    rows: list[tuple[int, float, float]], reach: int
) -> None:
    """Each pair of one user with different labels, less than ``reach`` apart, once."""
    rows = sorted(rows, key=lambda row: row[0])
    losses = []
    for (i, one), (j, other) in combinations(enumerate(rows), 2):
        if one[0] == other[0] and one[1] != other[1] and j - i < reach:
            click, passed = (one[2], other[2]) if one[1] else (other[2], one[2])
            losses.append(np.log1p(np.exp(passed - click)))
    users, labels, logits = (torch.tensor(column) for column in zip(*rows, strict=True))

    found = within_users(logits.float(), labels.float(), users, reach)

    assert float(found) == pytest.approx(np.mean(losses) if losses else 0.0, rel=1e-4, abs=1e-6)


def test_the_pull_is_towards_the_click_and_away_from_what_was_passed_over() -> None:
    """And nothing pulls at a user's impressions that all have one label."""
    logits = torch.zeros(4, requires_grad=True)
    labels, users = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 9, 9])

    (gradient,) = torch.autograd.grad(within_users(logits, labels, users, 4), logits)

    assert gradient.tolist() == [-0.5, 0.5, 0.0, 0.0]
