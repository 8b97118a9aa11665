"""LSTM with attention: the candidate weighs the recurrent states of all clicks.

Source: Chen et al., MM 2018, section 4.2: on top of the LSTM (Zhang et al., AAAI 2014) the vanilla
attention of the feed-forward network in Fig. 1, which is eq. 9 with states in place of blocks.

U users  N impressions  L history length  D embedding  K LSTM state
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers import (
    AdditiveAttention,
    FeedForwardHead,
    VideoEmbedding,
    masked_softmax,
    valid_positions,
)
from training.models.recurrent import every_place, shared_states
from training.models.thacil_shared import Windows


class LstmAttention(nn.Module):
    """Read the history click by click, attend to its states, then the feed-forward head.

    A cold video is embedded by its content. A user without clicks is the zero vector.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        lstm_dim: K, width of the states.
        hidden_dim: width of the head's hidden layer.
        dropout: after every projection of attention and head, as the reference has it.
        hidden_dropout: on the head's hidden layer only.
    """

    def __init__(
        self,
        embed: VideoEmbedding,
        *,
        lstm_dim: int,
        hidden_dim: int,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.lstm = nn.LSTM(embed.dim, lstm_dim, batch_first=True)
        self.attention = AdditiveAttention(lstm_dim, embed.dim, dropout=dropout)
        self.head = FeedForwardHead(
            lstm_dim,
            embed.dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def profile(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
        """Keep each click's state and what attention needs of it: [U, L, 1 + 2K].

        A position is ``[1 if it holds a click | W3 state + b3 | state]``.
        """
        states_ULK, _ = self.lstm(clicks_ULD)
        return self._profile(states_ULK, lengths_U)

    def shared_profile(self, videos_VD: Tensor, windows: Windows) -> Tensor:
        """Profile histories that share rows of clicks, for training: [U, L, 1 + 2K]."""
        states_ULK = shared_states(self.lstm, videos_VD, windows, every_place(windows))
        return self._profile(states_ULK, windows.lengths)

    def _profile(self, states_ULK: Tensor, lengths_U: Tensor) -> Tensor:
        valid_UL1 = valid_positions(states_ULK, lengths_U)[..., None]
        keys_ULK = self.attention.drop(self.attention.value(states_ULK))
        return torch.cat(
            [valid_UL1.to(states_ULK.dtype), keys_ULK, states_ULK.masked_fill(~valid_UL1, 0.0)],
            dim=-1,
        )

    def score(self, profile_NLP: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score one candidate per profile: logits [N]."""
        width = self.lstm.hidden_size
        valid_NL1, keys_NLK, states_NLK = profile_NLP.split([1, width, width], dim=-1)
        queries_NK = self.attention.drop(
            functional.linear(candidates_ND, self.attention.query.weight)
        )
        hidden = torch.relu(keys_NLK + queries_NK[:, None])
        scores = self.attention.drop(self.attention.score(hidden))
        weights = masked_softmax(scores, valid_NL1 > 0, dim=1)
        logits: Tensor = self.head((weights * states_NLK).sum(dim=1), candidates_ND)
        return logits

    def forward(
        self, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
    ) -> Tensor:
        """Score impressions, ``user_N`` being each one's row in ``clicks_ULD``: logits [N]."""
        profile = self.profile(clicks_ULD, lengths_U)
        return self.score(profile.index_select(0, user_N), candidates_ND)
