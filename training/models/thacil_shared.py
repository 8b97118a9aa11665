"""THACIL's logits for batches in which users recur: what depends on one click is computed once.

The histories of a user's impressions overlap nearly everywhere. The scores of a click in its block
(eqs. 3 and 5) depend on that click alone, so ``exp(score)`` and ``exp(score) x`` are computed once
per click, and the softmax-weighted sum of any block is a ratio of two sums of them. The sums of all
blocks of all histories are one product with a 0/1 matrix that says which click is in which block.

U histories  N impressions  V videos  G groups of histories  K histories of a group at most
W clicks of a group at most  B blocks x S clicks  D embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.layers import masked_softmax
from training.models.thacil import Profile, Thacil

# exp(-60) is still a normal float32, also as the sum of a block's weights times its values.
_LOWEST_SCORE = -60.0
_PIECE = 256


@dataclass(frozen=True, slots=True)
class Windows:
    """Histories as windows over rows of clicks that they share.

    Attributes:
        clicks: [G, W], index into the videos, oldest first; padded with any valid index.
        group: [U], the row of ``clicks`` that a history lies in; ascending.
        first: [U], where in that row the history begins.
        lengths: [U], its clicks.
    """

    clicks: Tensor
    group: Tensor
    first: Tensor
    lengths: Tensor


def can_share(network: Thacil) -> bool:
    """Say whether a click weighs the same in every history: not under dropout on attention."""
    return not network.training or network.drop.p == 0


def shared_logits(
    network: Thacil, videos_VD: Tensor, windows: Windows, user_N: Tensor, candidates_ND: Tensor
) -> Tensor:
    """Score impressions as ``network.forward`` does, to rounding: logits [N].

    Args:
        network: its attention must be free of dropout (:func:`can_share`).
        videos_VD: embedded videos.
        windows: the histories.
        user_N: for each impression its history.
        candidates_ND: embedded candidates.
    """
    profile = shared_profile(network, videos_VD, windows)
    key_UBD = network.target_attention.value(profile.blocks)
    query_ND = network.target_attention.query(candidates_ND)
    hidden_NBD = torch.relu(key_UBD.index_select(0, user_N) + query_ND[:, None])
    scores_NBD = network.target_attention.score(hidden_NBD)
    valid_NB = profile.valid.index_select(0, user_N)
    weights_NBD = masked_softmax(scores_NBD, valid_NB[..., None], dim=1)
    user_ND = (weights_NBD * profile.blocks.index_select(0, user_N)).sum(dim=1)
    return network.head(user_ND, candidates_ND)


def score_runs(
    network: Thacil, profile: Profile, runs_U: Sequence[int], candidates_ND: Tensor
) -> Tensor:
    """Score many candidates per history, for evaluation: logits [N].

    Args:
        network: in evaluation mode.
        profile: of U histories.
        runs_U: how many candidates each history has.
        candidates_ND: embedded candidates, history after history.
    """
    attention, width = network.target_attention, network.shape.embedding_dim
    user_weight, item_weight = network.hidden.weight.split(width, dim=1)
    key_UBD = attention.value(profile.blocks)
    filled_U = profile.valid.sum(dim=1).tolist()
    # Small pieces: what lies between two products stays in the processor's cache. Of one size: a
    # small rest would take nearly as long.
    pieces = [
        (user, piece)
        for user, run in enumerate(candidates_ND.split(list(runs_U)))
        for piece in run.chunk(max(1, -(-len(run) // _PIECE)))
    ]
    logits = []
    for user, candidates in pieces:
        # A user without clicks attends uniformly to blocks that are all alike.
        blocks = slice(0, filled_U[user] or None)
        hidden_NBD = (key_UBD[user, blocks] + attention.query(candidates)[:, None]).relu_()
        weights_NBD = torch.softmax(attention.score(hidden_NBD), dim=1)
        user_ND = weights_NBD.mul_(profile.blocks[user, blocks]).sum(dim=1)
        hidden_NE = functional.linear(candidates, item_weight, network.hidden.bias)
        hidden_NE += functional.linear(user_ND, user_weight)
        if network.interaction is not None:
            hidden_NE += network.interaction(user_ND * candidates)
        logits.append(network.output(hidden_NE.relu_()).squeeze(-1))
    return torch.cat(logits)


def shared_profile(network: Thacil, videos_VD: Tensor, windows: Windows) -> Profile:
    """Profile every history: blocks [U, B', D], B' the blocks that the longest one fills."""
    size = network.shape.block_size
    longest = max(1, int(windows.lengths.max()))
    begins_B = size * torch.arange(-(-longest // size), device=videos_VD.device)
    left_UB = windows.lengths[:, None] - begins_B
    valid_UB = left_UB > 0
    begins_UB = windows.first[:, None] + begins_B
    sums_UBD = _block_sums(
        _weighted(network, videos_VD), windows, begins_UB, left_UB.clamp(min=0, max=size)
    )
    weight, weighted = sums_UBD.chunk(2, dim=-1)
    # An empty block has neither weight nor value: zeros, as the reference gives it.
    local_UBD = weighted / weight.masked_fill(~valid_UB[..., None], 1.0)
    fused_UBD = local_UBD + _earlier_blocks(network, local_UBD, valid_UB)
    return Profile(network.normalise(fused_UBD, windows.lengths), valid_UB)


def _earlier_blocks(network: Thacil, local_UBD: Tensor, valid_UB: Tensor) -> Tensor:
    """Attend to what came before each block (eqs. 6 to 8), over pairs that may: [U, B', D]."""
    attention, count = network.self_attention, local_UBD.shape[1]
    later_P, earlier_P = torch.tril_indices(count, count, -1, device=local_UBD.device)
    # 5 tanh(x / 5): the inner fifth on the few blocks, the outer factor on the one kernel.
    query_UBD = (attention.query(local_UBD) + attention.bias.repeat(attention.num_heads)) / 5.0
    key_UBD = attention.key(local_UBD) / 5.0
    value_UBD = attention.value(local_UBD) * valid_UB[..., None]
    pairs_UPD = torch.tanh(key_UBD.index_select(1, later_P) + query_UBD.index_select(1, earlier_P))
    heads_UPHK = pairs_UPD.unflatten(-1, (attention.num_heads, -1))
    scores_UPD = functional.linear(heads_UPHK, 5.0 * attention.score.weight).flatten(-2)
    peak_UD = scores_UPD.detach().amax(dim=1, keepdim=True) if count > 1 else scores_UPD
    weight_UPD = torch.exp((scores_UPD - peak_UD).clamp(min=_LOWEST_SCORE))
    weight_UPD = weight_UPD * valid_UB.index_select(1, earlier_P)[..., None]
    rows_B = torch.arange(1, count, device=local_UBD.device)
    member_BP = (rows_B[:, None] == later_P).to(local_UBD.dtype)
    total_UBD = member_BP @ weight_UPD
    mean_UBD = member_BP @ (weight_UPD * value_UBD.index_select(1, earlier_P))
    # A block without a valid predecessor takes the mean over all B blocks.
    first_U1D = value_UBD.sum(dim=1, keepdim=True) / network.shape.num_blocks
    alone_UBD = total_UBD == 0
    mean_UBD = torch.where(alone_UBD, first_U1D, mean_UBD / total_UBD.masked_fill(alone_UBD, 1.0))
    return torch.cat([first_U1D, mean_UBD], dim=1)


def _weighted(network: Thacil, videos_VD: Tensor) -> Tensor:
    """``[exp(score) | exp(score) x]`` of every video, [V, 2D]."""
    item, category = videos_VD.split([network.shape.item_dim, network.shape.category_dim], dim=-1)
    scores_VD = torch.cat(
        [network.item_attention(item, category), network.category_attention(category, item)], dim=-1
    )
    # One peak for all blocks, so that blocks can share: only a block whose every score lies 60
    # below the best of the batch would be off, and towards a plain mean.
    peak_D = scores_VD.detach().amax(dim=0)
    weight_VD = torch.exp((scores_VD - peak_D).clamp(min=_LOWEST_SCORE))
    return torch.cat([weight_VD, weight_VD * videos_VD], dim=-1)


def _block_sums(
    weighted_VD: Tensor, windows: Windows, begins_UB: Tensor, counts_UB: Tensor
) -> Tensor:
    """Sum rows of videos over every block of every history: [U, B', 2D]."""
    groups, width = windows.clicks.shape
    clicks_GWD = functional.embedding(windows.clicks, weighted_VD)
    starts_G = torch.searchsorted(windows.group, torch.arange(groups, device=weighted_VD.device))
    rank_U = torch.arange(len(windows.group), device=weighted_VD.device) - starts_G[windows.group]
    slot_U = windows.group * (int(rank_U.max()) + 1) + rank_U
    slots = groups * (int(rank_U.max()) + 1)
    columns_W = torch.arange(width, device=weighted_VD.device)
    ends_UB = begins_UB + counts_UB
    inside_UBW = (columns_W >= begins_UB[..., None]) & (columns_W < ends_UB[..., None])
    member_SBW = weighted_VD.new_zeros(slots, *inside_UBW.shape[1:])
    member_SBW[slot_U] = inside_UBW.to(weighted_VD.dtype)
    sums = torch.bmm(member_SBW.view(groups, -1, width), clicks_GWD)
    return sums.view(slots, begins_UB.shape[1], -1).index_select(0, slot_U)
