"""How far a THACIL network's attention is from a plain mean.

An attention whose weights are uniform is mean pooling with more parameters, and no ranking metric
tells: a network may score well with all of its attention collapsed. The measure is the total
variation distance between the softmax weights w and uniform ones over the n valid positions,

    1/2 sum_p |w_p - 1/n|

(Levin, Peres and Wilmer, Markov Chains and Mixing Times, Proposition 4.2): the share of the weight
that would have to move to make the weights uniform. It is 0 for uniform weights and (n - 1) / n
where one position takes everything.

U histories  N impressions  B blocks x S clicks  D features of a weight  P positions  M position sets
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.config import RunConfig
from training.evaluate import test_examples
from training.interactions import ClickLog, Impressions
from training.layers import valid_positions
from training.models import Network
from training.models.thacil import Profile, Thacil

ATTENTIONS: Final = ("category", "item", "forward", "target")
"""Over the clicks of a block by category (eq. 5) and by content (eq. 3), over the blocks before a
block (eqs. 6 to 8), and over all blocks by the candidate (eq. 9)."""

COLLAPSED: Final = 0.01
"""A smaller deviation is a plain mean for all purposes: a hundredth of the weight is moved."""

_IMPRESSIONS = 4096
# Sampled impressions rarely share a history: a batch holds this many, each up to L clicks long.
_PER_BATCH = 256


def attention_deviation(
    network: Network, config: RunConfig, log: ClickLog, impressions: Impressions
) -> dict[str, float]:
    """Measure a network's attentions on a sample of test impressions.

    Args:
        network: in evaluation mode afterwards.
        config: of the run that trained it.
        log: whose clicks are the histories.
        impressions: of the log's test videos; at most 4,096 of them are taken, always the same.

    Returns:
        By name in :data:`ATTENTIONS`, 0 to 1: see :func:`deviations`. An attention that never had
        two positions to choose from is left out; a model other than THACIL has none at all.
    """
    if not isinstance(network, Thacil):
        return {}
    rng, total = np.random.default_rng(0), len(impressions)
    rows = np.sort(rng.choice(total, min(total, _IMPRESSIONS), replace=False))
    examples = test_examples(config, log, impressions.take(rows))
    device = next(network.parameters()).device
    sums = torch.zeros(len(ATTENTIONS), 2, dtype=torch.float64)
    network.eval()
    with torch.inference_mode():
        for cpu_batch in examples.sequential(_PER_BATCH):
            batch = cpu_batch.to(device)
            videos = network.embed(batch.features, batch.categories)
            clicks = functional.embedding(batch.history, videos)
            candidates = videos.index_select(0, batch.candidate)
            sums += deviations(network, clicks, batch.lengths, batch.user, candidates).cpu()
    return {
        name: deviation / sets
        for name, (deviation, sets) in zip(ATTENTIONS, sums.tolist(), strict=True)
        if sets
    }


def collapsed(deviation: Mapping[str, float]) -> list[str]:
    """Name the attentions that are a plain mean, in the order of :data:`ATTENTIONS`."""
    return [name for name in ATTENTIONS if deviation.get(name, 1.0) < COLLAPSED]


def deviations(
    network: Thacil, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
) -> Tensor:
    """Sum the deviation from uniform over all position sets of some impressions.

    A position set is what one softmax runs over: the clicks of a block, the blocks before a block,
    the blocks of a history. Each counts once for every impression, as the mean over its features;
    sets with fewer than two valid positions leave no choice and do not count.

    Args:
        network: its weights as they are in :meth:`Thacil.forward`.
        clicks_ULD: embedded histories, as for :meth:`Thacil.profile`.
        lengths_U: their lengths.
        user_N: for each impression, the row of its user in ``clicks_ULD``.
        candidates_ND: embedded candidates.

    Returns:
        [4, 2], a row for each of :data:`ATTENTIONS`: sum of deviations, and how many sets.
    """
    size = network.shape.block_size
    clicks_UBSD = clicks_ULD.unflatten(1, (-1, size))
    mask_UBS = valid_positions(clicks_ULD, lengths_U).unflatten(1, (-1, size))
    valid_UB = mask_UBS.any(dim=-1)
    item, category = network.local_weights(clicks_UBSD, mask_UBS)
    local_UBD = network.local(clicks_UBSD, mask_UBS)
    forward, earlier_UIJ = network.self_attention.weights(local_UBD, valid_UB)
    # What an empty block takes of earlier ones goes nowhere.
    earlier_UIJ = earlier_UIJ & valid_UB[:, :, None]
    profile = network.fuse(local_UBD, lengths_U)
    chosen = Profile(profile.blocks[user_N], profile.valid[user_N])
    target_N1BD = network.target_weights(chosen, candidates_ND)[:, None]
    of_users = [(category, mask_UBS), (item, mask_UBS), (forward, earlier_UIJ)]
    rows = [_sum_and_count(*each)[user_N] for each in of_users]
    rows.append(_sum_and_count(target_N1BD, chosen.valid[:, None]))
    return torch.stack([row.sum(dim=0) for row in rows])


def total_variation(weights: Tensor, mask: Tensor) -> Tensor:
    """Distance of weights [..., P, D] to uniform ones where ``mask [..., P]``, mean over D: [...]."""
    uniform = mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return (weights - uniform[..., None]).abs().sum(dim=-2).mean(dim=-1) / 2


def _sum_and_count(weights_XMPD: Tensor, mask_XMP: Tensor) -> Tensor:
    """Sum the deviations of each row's position sets, and count those that have a choice: [X, 2]."""
    counts_XM = mask_XMP.sum(dim=-1) > 1
    sums_X = (total_variation(weights_XMPD, mask_XMP) * counts_XM).sum(dim=1)
    return torch.stack([sums_X, counts_XM.sum(dim=1)], dim=1).double()
