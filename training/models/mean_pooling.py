"""Mean pooling: a user is the plain mean of the clicked videos.

Source: the user tower of YouTube's recommender (Covington et al., RecSys 2016, section 3.2),
which averages the embeddings of watched videos; the head is THACIL's feed-forward part, as the
paper has it.

U users  N impressions  L history length  D embedding
"""

from __future__ import annotations

from torch import Tensor, nn

from training.layers import FeedForwardHead, VideoEmbedding, valid_positions


class MeanPooling(nn.Module):
    """Average the history, then the feed-forward head.

    A cold video is embedded by its content. A user without clicks is the zero vector.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        hidden_dim: width of the head's hidden layer.
        dropout: on the head's hidden layer and on the logit.
        hidden_dropout: on the head's hidden layer only.
    """

    def __init__(
        self, embed: VideoEmbedding, *, hidden_dim: int, dropout: float, hidden_dropout: float
    ) -> None:
        super().__init__()
        self.embed = embed
        self.head = FeedForwardHead(
            embed.dim,
            embed.dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def profile(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
        """Average padded histories: [U, 1, D]."""
        mask_UL1 = valid_positions(clicks_ULD, lengths_U)[..., None]
        total_UD = clicks_ULD.masked_fill(~mask_UL1, 0.0).sum(dim=1)
        return (total_UD / lengths_U.clamp(min=1)[:, None])[:, None]

    def score(self, profile_N1D: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score one candidate per profile: logits [N]."""
        logits: Tensor = self.head(profile_N1D.squeeze(1), candidates_ND)
        return logits

    def forward(
        self, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
    ) -> Tensor:
        """Score impressions, ``user_N`` being each one's row in ``clicks_ULD``: logits [N]."""
        profile = self.profile(clicks_ULD, lengths_U)
        return self.score(profile.index_select(0, user_N), candidates_ND)
