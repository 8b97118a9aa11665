"""The graph that runs per request: what depends on user and candidate together.

T tiles x M candidates  K blocks  P = D user and item width  H attention units  E hidden units
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store import FloatArray, HeadWeights
from training.models.thacil import Thacil

SAFE_RANGE: Final = 80.0
"""How far apart the scores of two blocks may be where no maximum is taken: exp(80) summed over
blocks, times what a profile holds, is far from the end of float32 at 3.4e38."""


def score_range(network: Thacil) -> float:
    """Return how far apart two blocks' attention scores can be, whatever the candidate.

    A candidate adds the same to every block before the ReLU, which moves nothing by more than
    it is moved. So two blocks' scores of a feature d differ by at most
    sum_h |W_dh| |(W3 (u_i - u_j))_h|, and u comes out of a layer norm: u_i - u_j is gain times a
    vector no longer than 2 sqrt(D), and what the vectors of the two blocks' ages differ by, if any.
    """
    attention, gain = network.target_attention, network.norm.weight.detach().double()
    incoming_HD = attention.value.weight.detach().double() * gain
    score_DH = attention.score.weight.detach().double()
    # Two bounds of the sum, unit by unit and by Cauchy and Schwarz; the smaller holds.
    by_unit_D = score_DH.abs() @ incoming_HD.norm(dim=1)
    together_D = score_DH.norm(dim=1) * torch.linalg.matrix_norm(incoming_HD, 2)
    longest = 2.0 * math.sqrt(network.shape.embedding_dim)
    range_D = longest * torch.minimum(by_unit_D, together_D)
    if network.age_embedding is not None:
        ages_AD = network.age_embedding.weight.detach().double()
        heard_HA = attention.value.weight.detach().double() @ ages_AD.T
        range_D = range_D + score_DH.abs() @ (heard_HA.amax(dim=1) - heard_HA.amin(dim=1))
    return float(range_D.max())


class ScoreHead(nn.Module):
    """Scores tiles of candidates, each tile for one user.

    W3 u is computed here, for at most B blocks: beside the candidates' work that is nothing, and
    a profile half as wide is what Redis keeps of every user. Tiles of several users go through
    in one run, each as it would alone.

    The softmax is written out, dividing once after the sum over blocks, and everything lies with
    the candidates innermost: long runs for every broadcast, and sums over blocks that are
    products with a row of ones, several times faster in ONNX Runtime than a reduction. A softmax
    takes differences to the largest score, lest exp overflow; where :func:`score_range` proves
    that it cannot, the first block's score does as well, and is subtracted before the product
    with W, where there are few units.
    """

    def __init__(self, network: Thacil) -> None:
        super().__init__()
        self.network = network
        self.bounded = score_range(network) <= SAFE_RANGE
        """Whether no maximum over blocks is needed."""

    def weights(self) -> HeadWeights | None:
        """Return what the graph computes with as numbers; nothing where it takes a maximum."""
        if not self.bounded:
            return None
        net, attention = self.network, self.network.target_attention
        width = net.shape.embedding_dim
        hidden, _ = net.hidden.weight.split(width, dim=1)
        none = torch.zeros(0, width)
        return HeadWeights(
            key=_array(attention.value.weight),
            score=_array(attention.score.weight),
            hidden=_array(hidden),
            interaction=_array(none if net.interaction is None else net.interaction.weight),
            output=_array(net.output.weight[0]),
            bias=_array(net.output.bias[0]),
        )

    def forward(self, user_profile: Tensor, candidate_rows: Tensor) -> Tensor:
        """Score tiles: user_profile [T, K, P], candidate_rows [T, M, C] -> logits [T, M]."""
        net, attention = self.network, self.network.target_attention
        # Where the head multiplies user and candidate, a row ends with the candidate itself.
        query_THM, item_TEM, *candidate = candidate_rows.transpose(1, 2).split(
            [
                attention.query.out_features,
                net.hidden.out_features,
                *([] if net.interaction is None else [net.shape.embedding_dim]),
            ],
            dim=1,
        )
        key_TKH = functional.linear(user_profile, attention.value.weight)
        units_TKHM = torch.relu(key_TKH[..., None] + query_THM[:, None])
        if self.bounded:
            scores_TKDM = attention.score.weight @ (units_TKHM - units_TKHM[:, :1])
        else:
            scores_TKDM = attention.score.weight @ units_TKHM
            scores_TKDM = scores_TKDM - scores_TKDM.amax(dim=1, keepdim=True)
        weights_TKDM = torch.exp(scores_TKDM)
        tiles, blocks, width, candidates = weights_TKDM.shape
        ones_K = torch.ones(blocks, device=user_profile.device)
        values_TKX = (weights_TKDM * user_profile[..., None]).reshape(tiles, blocks, -1)
        total_T1X = ones_K[None] @ weights_TKDM.reshape(tiles, blocks, -1)
        user_TDM = (ones_K[None] @ values_TKX / total_T1X).reshape(tiles, width, candidates)
        user_half_ED, _ = net.hidden.weight.split(net.shape.embedding_dim, dim=1)
        hidden_TEM = user_half_ED @ user_TDM + item_TEM
        if net.interaction is not None:
            hidden_TEM = hidden_TEM + net.interaction.weight @ (user_TDM * candidate[0])
        logit_T1M: Tensor = net.output.weight @ torch.relu(hidden_TEM) + net.output.bias
        return logit_T1M.squeeze(1)


def _array(weight: Tensor) -> FloatArray:
    # A copy, side by side: some are a part of a matrix.
    array: FloatArray = weight.detach().cpu().contiguous().numpy().copy()
    return array
