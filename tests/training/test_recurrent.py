"""Rows of clicks that histories share are read once while LSTMs train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.batches import Batch, VideoTable
from training.evaluate import forward
from training.examples import Examples
from training.interactions import ClickHistories, Impressions
from training.layers import VideoEmbedding
from training.models.lstm import Lstm
from training.models.lstm_attention import LstmAttention

LENGTH = 12
SIZES = {"lstm_dim": 5, "hidden_dim": 6, "dropout": 0.0, "hidden_dropout": 0.0}


def _embed() -> VideoEmbedding:
    return VideoEmbedding(6, num_categories=5, item_dim=4, category_dim=4)


def _batch(clicks: int) -> Batch:
    """One batch of three users who clicked about so many videos each."""
    rng = np.random.default_rng(clicks)
    rows = 3 * 2 * clicks
    categories = rng.integers(0, 5, 30)
    items = rng.integers(0, 30, rows)
    log = Impressions(
        rng.integers(0, 3, rows),
        items,
        categories[items],
        (rng.random(rows) < 0.5).astype(np.float32),
        np.arange(rows),
    )
    videos = VideoTable.from_log(rng.normal(size=(30, 6)).astype(np.float32), log, 5)
    histories = ClickHistories.from_impressions(log)
    examples = Examples(
        log, videos, histories, videos, policy="causal", history_length=LENGTH, block_size=4
    )
    return next(examples.shuffled(rows, rng, rows_per_user=8).batches())


def _plain(network: Lstm | LstmAttention, batch: Batch) -> Tensor:
    """Every history by itself, from the state zero."""
    videos = network.embed(batch.features, batch.categories)
    clicks = nn.functional.embedding(batch.history, videos)
    logits: Tensor = network(clicks, batch.lengths, batch.user, videos[batch.candidate])
    return logits


@pytest.mark.parametrize("model", [Lstm, LstmAttention])
def test_histories_that_begin_with_their_row_are_read_exactly(
    model: type[Lstm | LstmAttention],
) -> None:
    """Logits and gradients are those of histories read one by one; some have no click."""
    torch.manual_seed(1)
    network = model(_embed(), **SIZES).train()
    batch = _batch(clicks=5)
    assert int(batch.first.max()) == 0
    assert int(batch.lengths.min()) == 0
    gradients = []
    for compute in (forward, _plain):
        network.zero_grad()
        logits = compute(network, batch)
        logits.square().sum().backward()
        gradients.append((logits.detach(), [p.grad.clone() for p in network.parameters()]))  # type: ignore[union-attr]

    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", [Lstm, LstmAttention])
def test_evaluation_starts_every_history_from_zero(
    model: type[Lstm | LstmAttention],
) -> None:
    """Also those that have lost their oldest clicks, which training starts from another state."""
    torch.manual_seed(1)
    network = model(_embed(), **SIZES)
    batch = _batch(clicks=40)
    assert int(batch.first.max()) > 0
    with torch.inference_mode():
        plain = _plain(network.eval(), batch)
        # To rounding: histories of like length are products of other sizes.
        torch.testing.assert_close(forward(network.eval(), batch), plain, atol=1e-6, rtol=1e-6)
        trained = forward(network.train(), batch)

    assert (trained - plain).abs().max() > 1e-4
    whole = batch.first[batch.user] == 0
    assert whole.any()
    torch.testing.assert_close(trained[whole], plain[whole], atol=1e-5, rtol=1e-4)
