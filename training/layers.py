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
    filled = scores.masked_fill(~mask, MASKED_SCORE)
    if torch.compiler.is_exporting():
        # ONNX Runtime transposes for a softmax over an inner axis, and takes four times as long.
        weights = torch.exp(filled - filled.amax(dim=dim, keepdim=True))
        return weights / weights.sum(dim=dim, keepdim=True)
    return torch.softmax(filled, dim=dim)


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


class VideoEmbedding(nn.Module):
    """Embed a video by its content: ``[E_f feature | E_c category]`` (eqs. 1 and 2).

    There is no embedding by video id: a video that nobody clicked yet, or that was uploaded
    after training, is embedded as well as an old one.

    Args:
        feature_dim: F, width of a content feature.
        num_categories: C; any category outside 0..C-1 is unknown: a zero vector, never trained.
        item_dim: width of the projected feature.
        category_dim: width of the category embedding.
    """

    def __init__(
        self, feature_dim: int, *, num_categories: int, item_dim: int, category_dim: int
    ) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.dim = item_dim + category_dim
        self.item_projection = nn.Linear(feature_dim, item_dim, bias=False)
        self.category_embedding = nn.Embedding(
            num_categories + 1, category_dim, padding_idx=num_categories
        )

    def forward(self, features: Tensor, categories: Tensor) -> Tensor:
        """Embed videos: features [..., F], categories [...] -> [..., D]."""
        known = (categories >= 0) & (categories < self.num_categories)
        embedded = self.category_embedding(categories.masked_fill(~known, self.num_categories))
        return torch.cat([self.item_projection(features), embedded], dim=-1)


class UserEmbedding(nn.Module):
    """A trained vector per user id; a user who was not in training gets the zero vector.

    Args:
        num_users: users of the training log; :meth:`assign` says who they are.
        dim: width.
    """

    known: Tensor

    def __init__(self, num_users: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_users + 1, dim, padding_idx=num_users)
        # Part of the state: a loaded network knows whose vector is whose.
        self.register_buffer("known", torch.arange(num_users))

    def assign(self, user_ids: Tensor) -> None:
        """Give every user a vector: distinct ids, ascending, as many as ``num_users``."""
        self.known.copy_(user_ids)

    def forward(self, user_ids: Tensor) -> Tensor:
        """Look users up: ids [N] -> [N, dim]."""
        unknown = len(self.known)
        if not unknown:
            return self.embedding(torch.zeros_like(user_ids))
        place = torch.searchsorted(self.known, user_ids).clamp(max=unknown - 1)
        found: Tensor = self.embedding(place.masked_fill(self.known[place] != user_ids, unknown))
        return found


class FeedForwardHead(nn.Module):
    """The feed-forward part of Fig. 1: ``[user | video]`` -> hidden, ReLU -> logit.

    Args:
        user_dim: width of the user's vector.
        video_dim: width of the candidate's.
        hidden_dim: width of the hidden layer.
        dropout: on the hidden layer and on the logit, as the reference has it.
        hidden_dropout: on the hidden layer only.
    """

    def __init__(
        self,
        user_dim: int,
        video_dim: int,
        *,
        hidden_dim: int,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(user_dim + video_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 1)
        self.drop = nn.Dropout(dropout)
        self.hidden_drop = nn.Dropout(max(dropout, hidden_dropout))

    def forward(self, user_NK: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score pairs: logits [N]."""
        hidden = torch.relu(self.hidden(torch.cat([user_NK, candidates_ND], dim=-1)))
        logit: Tensor = self.drop(self.output(self.hidden_drop(hidden)))
        return logit.squeeze(-1)


def valid_positions(clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
    """Mark where a padded history holds a click: [U, L], boolean."""
    positions = torch.arange(clicks_ULD.shape[1], device=clicks_ULD.device)
    return positions[None] < lengths_U[:, None]
