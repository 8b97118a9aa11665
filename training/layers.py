"""The blocks that the networks share: masked softmax and feature-wise additive attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Finite, so that a position set without any valid member gives a uniform softmax, not NaN
# (the reference fills with -2^32 + 1 to the same effect).
MASKED_SCORE = -1e9


def masked_softmax(scores: Tensor, mask: Tensor, *, dim: int) -> Tensor:
    """Softmax over the valid positions of ``dim``; uniform where no position is valid.

    Args:
        scores: any shape.
        mask: boolean, broadcastable to ``scores``; true where a position is valid.
        dim: the axis of the positions.
    """
    return torch.softmax(scores.masked_fill(~mask, MASKED_SCORE), dim=dim)


class AdditiveAttention(nn.Module):
    """Feature-wise additive attention: ``W relu(W1 x + W2 q + b1) + b2`` (eqs. 3, 5 and 9).

    Every feature of x gets its own score; the caller takes the softmax over positions.

    Args:
        value_dim: width of what is attended to.
        query_dim: width of what asks.
        dropout: probability of dropping, after each of the three projections, scores included
            (the reference does so; the paper does not mention it).
    """

    def __init__(self, value_dim: int, query_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(value_dim, value_dim)
        # The reference has a second bias here; the sum of two biases is one bias.
        self.query = nn.Linear(query_dim, value_dim, bias=False)
        # Differs from the paper: no b2. Added to every position alike, it cancels in softmax.
        self.score = nn.Linear(value_dim, value_dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, values: Tensor, queries: Tensor) -> Tensor:
        """Score ``values [..., value_dim]`` for ``queries [..., query_dim]``, broadcasting."""
        hidden = torch.relu(self.drop(self.value(values)) + self.drop(self.query(queries)))
        scores: Tensor = self.drop(self.score(hidden))
        return scores
