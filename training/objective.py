"""What each model is trained on: which steps, and which loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from training.batches import Batch
from training.config import RunConfig
from training.evaluate import forward
from training.examples import Examples, Plan
from training.models import Network
from training.models.bpr import Bpr, pairwise_loss


def plan_epoch(config: RunConfig, examples: Examples, rng: np.random.Generator, size: int) -> Plan:
    """Plan an epoch of steps of ``size``: pairs for BPR, shuffled impressions for all others."""
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
    logits = forward(network, batch).float()
    if isinstance(network, Bpr):
        return pairwise_loss(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
