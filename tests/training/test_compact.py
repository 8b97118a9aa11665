"""Dead units are folded away, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_store import Model
from training.compact import Kept, compact
from training.export import export_graphs, golden_cases, layout_of
from training.models.thacil import Thacil, ThacilShape

SHAPE = ThacilShape(
    feature_dim=6, num_categories=5, item_dim=8, category_dim=8, num_heads=4, num_blocks=3,
    block_size=4, hidden_dim=12,
)  # fmt: skip


def network(*, modern: bool = False) -> Thacil:
    torch.manual_seed(1)
    return Thacil(replace(SHAPE, interaction=modern, block_age=modern)).eval()


def test_a_live_network_stays_as_it_is() -> None:
    """Without dead units every weight is kept."""
    net = network()
    small, kept = compact(net)

    assert kept["target_attention"] == Kept(16, 16)
    assert kept["hidden"] == Kept(12, 12)
    before, after = net.state_dict(), small.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("modern", [False, True])
def test_dead_units_go_and_answers_stay(modern: bool) -> None:
    """Unheard units, constant units and unheard hidden units go; logits do not move."""
    net = network(modern=modern)
    with torch.no_grad():
        net.target_attention.score.weight[:, 3:] = 0
        net.target_attention.value.bias[0] = 2.0
        net.target_attention.value.weight[0] = 0
        net.target_attention.query.weight[0] = 0
        net.item_attention.score.weight[:, ::2] = 0
        net.output.weight[:, 5:] = 1e-12
    small, kept = compact(net)
    model = Model(export_graphs(small), layout_of(small))

    assert kept["target_attention"] == Kept(2, 16)
    assert kept["item_attention"] == Kept(4, 8)
    assert kept["category_attention"] == Kept(8, 8)
    assert kept["hidden"] == Kept(5, 12)
    assert model.prove(golden_cases(net, seed=3, candidates=50), tolerance=1e-5) < 1e-5


def test_an_attention_without_a_living_unit_still_exports() -> None:
    """Where everything is dead one unit is kept, and the weights are uniform."""
    net = network()
    with torch.no_grad():
        net.target_attention.score.weight.zero_()
    small, kept = compact(net)
    model = Model(export_graphs(small), layout_of(small))

    assert kept["target_attention"].alive == 1
    assert np.isfinite(model.prove(golden_cases(net), tolerance=1e-5))
