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
from training.user_counts import UserCounts


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


def count_steps(config: RunConfig, counts: UserCounts, size: int) -> int:
    """Say how many steps :func:`plan_epoch` will plan, from what the users did.

    Args:
        config: which model, and whether negatives are drawn.
        counts: of the impressions that are learnt from.
        size: impressions per step.
    """
    if config.model == "bpr":
        pairs = int(counts.clicks[counts.has_both].sum())
        return pairs // min(max(1, size // 2), max(1, pairs))
    ratio = config.data.negatives_per_positive
    rows = int((counts.shown if ratio is None else counts.drawn(ratio)).sum())
    return max(rows // size, min(rows, 1))


def loss_of(
    network: Network, batch: Batch, *, pairwise_share: float = 0.0, reach: int = 1
) -> torch.Tensor:
    """Compute the mean loss of a batch: BPR's pairwise one, cross entropy (eq. 10) elsewhere.

    Cross entropy mostly learns what tells users apart, who clicks much and who little; that moves
    nothing in the order of one user's candidates. So a share of the loss can be over pairs of one
    user's impressions, as in combined regression and ranking (Sculley, KDD 2010).

    Args:
        network: what scores.
        batch: what is scored.
        pairwise_share: 0 to 1, of the loss over pairs; BPR has no other.
        reach: impressions of a pair stand less than this apart in the batch.
    """
    logits = forward(network, batch).float()
    if isinstance(network, Bpr):
        return pairwise_loss(logits)
    pointwise = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
    if not pairwise_share:
        return pointwise
    pairwise = within_users(logits, batch.labels, batch.user_ids, reach)
    return (1 - pairwise_share) * pointwise + pairwise_share * pairwise


def within_users(
    logits: torch.Tensor, labels: torch.Tensor, user_ids: torch.Tensor, reach: int
) -> torch.Tensor:
    """Mean of -log sigmoid(click's logit - other's logit) over pairs of one user; 0 without a pair.

    Args:
        logits: [N]; impressions of one user lie together.
        labels: [N], 0 or 1.
        user_ids: [N].
        reach: impressions of a pair stand less than this apart.
    """
    total, pairs = logits.new_zeros(()), logits.new_zeros(())
    # By distance, in shapes that do not depend on the data: no device waits, and it compiles.
    for distance in range(1, min(reach, len(logits))):
        one, other = slice(None, -distance), slice(distance, None)
        # 1 where the first is the click, -1 where the second is, 0 where there is no pair.
        order = (labels[one] - labels[other]) * (user_ids[one] == user_ids[other])
        loss = nn.functional.softplus(-order * (logits[one] - logits[other]))
        total = total + (loss * order.abs()).sum()
        pairs = pairs + order.abs().sum()
    return total / pairs.clamp(min=1.0)
