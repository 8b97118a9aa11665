"""Sharing the work of a click between histories changes no answer and no gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.batches import Batch, VideoTable
from training.evaluate import forward, score
from training.examples import Examples
from training.interactions import ClickHistories, Impressions
from training.models.thacil import Thacil, ThacilShape
from training.models.thacil_shared import can_share

SHAPE = ThacilShape(
    feature_dim=6,
    num_categories=5,
    item_dim=8,
    category_dim=8,
    num_heads=2,
    num_blocks=4,
    block_size=3,
    hidden_dim=10,
)
VIDEOS = 30


def _network(*, dropout: float = 0.0, gain: float = 2.0, modern: bool = True) -> Thacil:
    torch.manual_seed(3)
    network = Thacil(replace(SHAPE, interaction=modern, block_age=modern), dropout=dropout)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # What counts tenfold would make ten times the rounding, too.
            parameter.mul_(0.1 * gain if "likeness" in name else gain)
    return network


def _examples(seed: int, *, rows: int, users: int, click_share: float, policy: str) -> Examples:
    rng = np.random.default_rng(seed)
    categories = rng.integers(0, 5, VIDEOS)
    items = rng.integers(0, VIDEOS, rows)
    log = Impressions(
        rng.integers(0, users, rows),
        items,
        categories[items],
        (rng.random(rows) < click_share).astype(np.float32),
        rng.integers(0, 40, rows),
    )
    videos = VideoTable.from_log(rng.normal(size=(VIDEOS, 6)).astype(np.float32), log, 5)
    return Examples(
        log,
        videos,
        ClickHistories.from_impressions(log),
        videos,
        policy=policy,  # type: ignore[arg-type]
        history_length=SHAPE.history_length,
        block_size=SHAPE.block_size,
    )


def _plain(network: Thacil, batch: Batch) -> torch.Tensor:
    """Every history by itself, as the network's own forward pass has it."""
    videos = network.embed(batch.features, batch.categories)
    clicks = torch.nn.functional.embedding(batch.history, videos)
    logits: torch.Tensor = network(clicks, batch.lengths, batch.user, videos[batch.candidate])
    return logits


worlds = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 120),
        "users": st.integers(1, 6),
        "click_share": st.sampled_from([0.0, 0.2, 0.7, 1.0]),
        "policy": st.sampled_from(["causal", "paper"]),
    }
)


@given(worlds, st.integers(0, 99), st.integers(1, 9), st.integers(1, 50))
def test_shared_logits_are_the_plain_ones(
    world: dict[str, object], seed: int, rows_per_user: int, batch_size: int
) -> None:
    """Whatever lies in a batch: no click at all, part-filled blocks, more clicks than are seen."""
    network = _network().eval()
    examples = _examples(seed, **world)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    for batch in examples.shuffled(batch_size, rng, rows_per_user=rows_per_user).batches():
        with torch.inference_mode():
            torch.testing.assert_close(
                forward(network, batch), _plain(network, batch), atol=2e-5, rtol=1e-5
            )


def test_shared_gradients_are_the_plain_ones() -> None:
    """Every parameter gets the same gradient, so training is the same but for rounding."""
    network = _network().train()
    examples = _examples(1, rows=300, users=5, click_share=0.5, policy="causal")
    batch = next(examples.shuffled(200, np.random.default_rng(0), rows_per_user=16).batches())
    gradients = []
    for compute in (forward, _plain):
        network.zero_grad()
        compute(network, batch).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters()})  # type: ignore[union-attr]

    for name, gradient in gradients[1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-4 * scale, rtol=0)


def test_far_apart_scores_give_finite_gradients() -> None:
    """Attention scores hundreds apart neither overflow nor divide zero by zero."""
    network = _network(gain=30.0).train()
    examples = _examples(1, rows=300, users=5, click_share=0.5, policy="causal")
    batch = next(examples.shuffled(200, np.random.default_rng(0), rows_per_user=16).batches())
    loss = forward(network, batch).mean()
    loss.backward()

    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_dropout_on_attention_is_not_shared() -> None:
    """Under dropout every occurrence of a click draws its own mask, as in the reference."""
    network = _network(dropout=0.5)

    assert not can_share(network.train())
    assert can_share(network.eval())


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("click_share", [0.0, 0.02, 0.6])
@pytest.mark.parametrize("users", [1, 3, 20])
def test_scores_by_run_are_the_plain_ones(click_share: float, modern: bool, users: int) -> None:
    """Long runs of candidates per history, cut or not, are scored another way to the same answer."""
    network = _network(modern=modern).eval()
    examples = _examples(2, rows=2000, users=users, click_share=click_share, policy="paper")
    assert examples.rows_per_history >= 16

    logits = score(network, examples)
    expected = np.empty_like(logits)
    with torch.inference_mode():
        for batch in examples.sequential(100):
            expected[batch.rows] = _plain(network, batch).numpy()

    np.testing.assert_allclose(logits, expected, atol=2e-5)
