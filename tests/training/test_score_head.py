"""The head's softmax is exact however large the scores, with a maximum and without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_store import EVERY_HEAD, Device, Model
from training.export import export_graphs, golden_cases, layout_of
from training.models.score_head import SAFE_RANGE, ScoreHead, score_range
from training.models.thacil import Thacil, ThacilShape

SHAPE = ThacilShape(
    feature_dim=6, num_categories=5, item_dim=8, category_dim=8, num_heads=4, num_blocks=3,
    block_size=4, hidden_dim=12,
)  # fmt: skip


def network(scale: float, *, ages: bool = False, interaction: bool = False) -> Thacil:
    torch.manual_seed(3)
    net = Thacil(replace(SHAPE, block_age=ages, interaction=interaction)).eval()
    with torch.no_grad():
        net.norm.weight.normal_()
        net.norm.bias.normal_()
        net.target_attention.score.weight.mul_(scale)
    return net


@pytest.mark.parametrize("scale", [1.0, 3.0, 30.0])
def test_no_two_blocks_scores_are_farther_apart_than_the_bound(scale: float) -> None:
    """For any profile that a layer norm can make, and any candidate."""
    net = network(scale)
    attention = net.target_attention
    torch.manual_seed(4)
    with torch.inference_mode():
        # Among them profiles in the directions to which the attention listens most.
        _, _, directions = torch.linalg.svd(attention.value.weight * net.norm.weight)
        inputs = torch.cat([torch.randn(200, 16), 9 * directions, -9 * directions])
        blocks = net.norm(inputs)
        candidates = 20 * torch.randn(50, 1, 16)
        scores = attention(blocks, candidates)
        spread = float((scores.amax(dim=1) - scores.amin(dim=1)).max())

    assert spread <= score_range(net)
    # No bound at all would be one, too.
    assert spread > 0.1 * score_range(net)


def test_the_bound_holds_whatever_the_blocks_ages() -> None:
    """Where what is added to a block tells blocks apart more than the blocks themselves do."""
    net = network(1.0, ages=True)
    attention = net.target_attention
    assert net.age_embedding is not None
    with torch.inference_mode():
        net.age_embedding.weight.mul_(10)
        lengths = torch.randint(0, 13, (200,))
        blocks = net.normalise(torch.randn(200, 3, 16), lengths)
        scores = attention(blocks, 20 * torch.randn(50, 1, 1, 16))
        spread = float((scores.amax(dim=-2) - scores.amin(dim=-2)).max())

    assert spread <= score_range(net)
    net.age_embedding = None
    assert score_range(net) < spread


@pytest.mark.parametrize("device", EVERY_HEAD, ids=lambda device: f"{device.head_bits}-bits")
@pytest.mark.parametrize("interaction", [False, True])
@pytest.mark.parametrize(("scale", "bounded"), [(1.0, True), (300.0, False)])
def test_the_head_answers_as_the_network_does(
    scale: float, bounded: bool, interaction: bool, device: Device
) -> None:
    """Also where exp would overflow without a maximum, which nothing but the graph takes."""
    net = network(scale, interaction=interaction)
    model = Model(export_graphs(net), layout_of(net), device=device)
    golden = golden_cases(net, seed=5, candidates=60)

    assert ScoreHead(net).bounded is bounded
    assert (model.compiled_head is not None) is (bounded and device.head_bits != 0)
    assert (score_range(net) <= SAFE_RANGE) is bounded
    assert model.prove(golden, tolerance=1e-5 if bounded else 1e-3) < 1e-3


@pytest.mark.parametrize("device", EVERY_HEAD, ids=lambda device: f"{device.head_bits}-bits")
def test_scores_at_the_edge_of_the_bound_do_not_overflow(device: Device) -> None:
    """With the first block at one end of the range and another at the other."""
    net = network(1.0)
    with torch.no_grad():
        net.target_attention.score.weight.mul_(0.999 * SAFE_RANGE / score_range(net))
    model = Model(export_graphs(net), layout_of(net), device=device)
    attention = net.target_attention
    with torch.inference_mode():
        _, _, directions = torch.linalg.svd(attention.value.weight * net.norm.weight)
        profile = net.norm(torch.stack([-9 * directions[0], 9 * directions[0], directions[3]]))
        rows = torch.randn(40, layout_of(net).candidate_dim) * 5
    logits = model.logits(profile.numpy(), rows.numpy())
    swapped = model.logits(profile.numpy()[[1, 0, 2]], rows.numpy())

    assert ScoreHead(net).bounded
    assert np.isfinite(logits).all()
    # Whichever block is the first: its place means nothing to the head.
    np.testing.assert_allclose(logits, swapped, atol=1e-5)
