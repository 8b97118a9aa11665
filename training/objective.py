"""What each model is trained on: which batches, and which loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from training.batches import Batch
from training.config import RunConfig
from training.evaluate import forward
from training.examples import Examples
from training.models import Network
from training.models.bpr import Bpr, pairwise_loss


def epoch_batches(
    config: RunConfig, examples: Examples, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield an epoch's batches: pairs for BPR, shuffled impressions for all others."""
    size = config.optim.batch_size
    if config.model == "bpr":
        return examples.pairs(size, rng)
    return examples.shuffled(
        size,
        rng,
        negatives=config.data.negatives_per_positive,
        rows_per_user=config.optim.rows_per_user,
    )


def loss_of(network: Network, batch: Batch) -> torch.Tensor:
    """Compute the mean loss of a batch: BPR's pairwise one, cross entropy (eq. 10) elsewhere."""
    logits = forward(network, batch)
    if isinstance(network, Bpr):
        return pairwise_loss(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
