"""ATRank: self-attention over the clicks, then attention by the candidate.

Source: Zhou et al., *ATRank: An Attention-Based User Behavior Modeling Framework for
Recommendation*, AAAI 2018: behaviours with a bucketed time encoding, multi-head self-attention with
a feed-forward layer, residuals and layer norms, then attention of the candidate to the behaviours.
As in Chen et al. (MM 2018, section 4.2), the end is the feed-forward part of THACIL's Fig. 1.

U users  N impressions  L history length  D embedding  H heads
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers import MASKED_SCORE, FeedForwardHead, VideoEmbedding, valid_positions

# Ages of 1, 2-3, 4-7, ... clicks; the last bucket holds all from 2^11 on.
_AGE_BUCKETS = 12


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with ReLU projections, a residual and a layer norm.

    The projections are the semantic spaces of the ATRank paper; the ReLU is its public code's.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.dropout = dropout

    def keys(self, behaviours_ULD: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to: keys and values, each [U, L, D]."""
        return torch.relu(self.key(behaviours_ULD)), torch.relu(self.value(behaviours_ULD))

    def forward(
        self, queries_NQD: Tensor, keys_NLD: Tensor, values_NLD: Tensor, valid_NL: Tensor
    ) -> Tensor:
        """Attend: Q queries over L projected positions of the same row -> [N, Q, D]."""
        query_NHQK = self._heads(torch.relu(self.query(queries_NQD)))
        key_NHLK, value_NHLK = self._heads(keys_NLD), self._heads(values_NLD)
        # Fused, since L x L scores of every head and history are mostly memory traffic.
        attended_NHQK = functional.scaled_dot_product_attention(
            query_NHQK,
            key_NHLK,
            value_NHLK,
            attn_mask=torch.where(valid_NL, 0.0, MASKED_SCORE)[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        # Nothing to attend to: nothing added, rather than a mean over padding.
        attended = attended_NHQK.transpose(1, 2).flatten(-2)
        attended = attended.masked_fill(~valid_NL.any(dim=-1)[:, None, None], 0.0)
        normed: Tensor = self.norm(queries_NQD + attended)
        return normed

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class PointwiseFeedForward(nn.Module):
    """Two layers at each position, a quarter as wide in between, a residual and a layer norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, max(1, dim // 4))
        self.outer = nn.Linear(max(1, dim // 4), dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [..., D] -> [..., D]."""
        normed: Tensor = self.norm(x + self.outer(torch.relu(self.inner(x))))
        return normed


class AtRank(nn.Module):
    """Relate every click to every other, attend to them by the candidate, then the head.

    Differs from ATRank: its time buckets are of elapsed time; ours are of a click's age counted
    in clicks, because published micro-video logs keep the order of events and not their spacing.
    A cold video is embedded by its content. To a user without clicks nothing is added.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        num_heads: H; must divide D.
        hidden_dim: width of the head's hidden layer.
        dropout: on attention weights, the head's hidden layer and the logit.
        hidden_dropout: on the head's hidden layer only.
    """

    def __init__(
        self,
        embed: VideoEmbedding,
        *,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.projection = nn.Linear(embed.dim, embed.dim)
        self.age_embedding = nn.Embedding(_AGE_BUCKETS, embed.dim)
        self.self_attention = MultiHeadAttention(embed.dim, num_heads=num_heads, dropout=dropout)
        self.self_feed_forward = PointwiseFeedForward(embed.dim)
        self.target_attention = MultiHeadAttention(embed.dim, num_heads=num_heads, dropout=dropout)
        self.target_feed_forward = PointwiseFeedForward(embed.dim)
        self.head = FeedForwardHead(
            embed.dim,
            embed.dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def profile(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
        """Relate the clicks of a history to each other: [U, L, 1 + 2D].

        A position is ``[1 if it holds a click | key | value]`` of the candidate's attention.
        """
        valid_UL = valid_positions(clicks_ULD, lengths_U)
        behaviours = self.projection(clicks_ULD) + self.age_embedding(_age(valid_UL, lengths_U))
        keys, values = self.self_attention.keys(behaviours)
        related = self.self_feed_forward(self.self_attention(behaviours, keys, values, valid_UL))
        keys, values = self.target_attention.keys(related)
        return torch.cat([valid_UL[..., None].to(keys.dtype), keys, values], dim=-1)

    def score(self, profile_NLP: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score one candidate per profile: logits [N]."""
        width = self.embed.dim
        valid_NL1, keys, values = profile_NLP.split([1, width, width], dim=-1)
        attended = self.target_attention(
            candidates_ND[:, None], keys, values, (valid_NL1 > 0).squeeze(-1)
        )
        logits: Tensor = self.head(self.target_feed_forward(attended).squeeze(1), candidates_ND)
        return logits

    def forward(
        self, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
    ) -> Tensor:
        """Score impressions, ``user_N`` being each one's row in ``clicks_ULD``: logits [N]."""
        profile = self.profile(clicks_ULD, lengths_U)
        return self.score(profile.index_select(0, user_N), candidates_ND)


def _age(valid_UL: Tensor, lengths_U: Tensor) -> Tensor:
    """Bucket each click's age, 1 for the newest, by powers of two: [U, L]."""
    positions = torch.arange(valid_UL.shape[1], device=valid_UL.device)
    age_UL = (lengths_U[:, None] - positions[None]).clamp(min=1)
    bounds = 2 ** torch.arange(1, _AGE_BUCKETS, device=valid_UL.device)
    return (age_UL[..., None] >= bounds).sum(dim=-1)
