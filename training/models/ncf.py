"""NCF: neural collaborative filtering, its fused form NeuMF.

Source: He et al., *Neural Collaborative Filtering*, WWW 2017, section 3.4, with the sizes of Chen
et al. (MM 2018, sections 4.2 and 4.3): one vector of 128 per user, a video's vector being 64 of its
picture and 64 of its category, all hidden layers 128 wide.

N impressions  D embedding  E hidden units
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.layers import UserEmbedding, VideoEmbedding


class Ncf(nn.Module):
    """Fuse a product of user and video with a network over both.

    It reads no history. A cold video is embedded by its content and so scored like any other. A
    cold user, one without a training impression, has the zero vector.

    Differs from the source: the two parts share the embeddings, because the experiment it is a
    baseline of counts one vector of 128 per user.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        num_users: users of the training log.
        hidden_dim: E, width of the two hidden layers.
        dropout: on hidden layers and on the logit.
        hidden_dropout: on hidden layers only.
    """

    def __init__(
        self,
        embed: VideoEmbedding,
        *,
        num_users: int,
        hidden_dim: int,
        dropout: float,
        hidden_dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.users = UserEmbedding(num_users, embed.dim)
        self.deep = nn.Sequential(
            nn.Linear(2 * embed.dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(max(dropout, hidden_dropout)),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(max(dropout, hidden_dropout)),
        )
        self.output = nn.Linear(embed.dim + hidden_dim, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, user_ids_N: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score impressions: logits [N]."""
        users_ND = self.users(user_ids_N)
        deep_NE = self.deep(torch.cat([users_ND, candidates_ND], dim=-1))
        fused = torch.cat([users_ND * candidates_ND, deep_NE], dim=-1)
        logits: Tensor = self.drop(self.output(fused))
        return logits.squeeze(-1)
