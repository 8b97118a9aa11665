"""LSTM: a user is the last state of a recurrent network over the clicks.

Source: Zhang et al., *Sequential Click Prediction for Sponsored Search with Recurrent Neural
Networks*, AAAI 2014, as Chen et al. (MM 2018, section 4.2) use it: the output is combined with
the candidate by THACIL's feed-forward part, without attention.

U users  N impressions  L history length  D embedding  K LSTM state
"""

from __future__ import annotations

from torch import Tensor, nn

from training.layers import FeedForwardHead, VideoEmbedding
from training.models.recurrent import shared_states
from training.models.thacil_shared import Windows


class Lstm(nn.Module):
    """Read the history click by click, then the feed-forward head.

    A cold video is embedded by its content. A user without clicks is the zero vector.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        lstm_dim: K, width of the state.
        hidden_dim: width of the head's hidden layer.
        dropout: on the head's hidden layer and on the logit.
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
        self.head = FeedForwardHead(
            lstm_dim,
            embed.dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def profile(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
        """Take the state after each history's last click: [U, 1, K].

        The network runs over the padding too and those states are never looked at: packed
        sequences cannot be exported to ONNX.
        """
        states_ULK, _ = self.lstm(clicks_ULD)
        last_U11 = (lengths_U - 1).clamp(min=0)[:, None, None]
        state_U1K: Tensor = states_ULK.gather(1, last_U11.expand(-1, 1, states_ULK.shape[2]))
        return _without_clicks_zero(state_U1K, lengths_U)

    def shared_profile(self, videos_VD: Tensor, windows: Windows) -> Tensor:
        """Profile histories that share rows of clicks, for training: [U, 1, K]."""
        last_U1 = (windows.lengths - 1).clamp(min=0)[:, None]
        state_U1K = shared_states(self.lstm, videos_VD, windows, last_U1)
        return _without_clicks_zero(state_U1K, windows.lengths)

    def score(self, profile_N1K: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score one candidate per profile: logits [N]."""
        logits: Tensor = self.head(profile_N1K.squeeze(1), candidates_ND)
        return logits

    def forward(
        self, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
    ) -> Tensor:
        """Score impressions, ``user_N`` being each one's row in ``clicks_ULD``: logits [N]."""
        profile = self.profile(clicks_ULD, lengths_U)
        return self.score(profile.index_select(0, user_N), candidates_ND)


def _without_clicks_zero(state_U1K: Tensor, lengths_U: Tensor) -> Tensor:
    return state_U1K.masked_fill((lengths_U == 0)[:, None, None], 0.0)
