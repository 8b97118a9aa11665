"""BPR: matrix factorisation trained on pairs.

Source: Rendle et al., *BPR: Bayesian Personalized Ranking from Implicit Feedback*, UAI 2009,
with the sizes of Chen et al. (MM 2018, section 4.2): users and videos are 128 wide, a video's
vector being 64 of its picture and 64 of its category.

N impressions  D embedding
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers import UserEmbedding, VideoEmbedding


class Bpr(nn.Module):
    """Score by the product of user and video, plus the video's own appeal.

    It reads no history. A cold video is embedded by its content and so scored like any other. A
    cold user, one without a training impression, has the zero vector and gets the videos ranked
    by appeal. Scores order the videos of one user; only calibration makes probabilities of them.

    Differs from the source: the appeal (its item bias) is a linear function of the video's
    vector, as an unseen video has no bias of its own.

    Args:
        embed: embeds videos, features [..., F] and categories [...] -> [..., D].
        num_users: users of the training log.
    """

    def __init__(self, embed: VideoEmbedding, *, num_users: int) -> None:
        super().__init__()
        self.embed = embed
        self.users = UserEmbedding(num_users, embed.dim)
        self.appeal = nn.Linear(embed.dim, 1, bias=False)

    def forward(self, user_ids_N: Tensor, candidates_ND: Tensor) -> Tensor:
        """Score impressions: scores [N], to be compared within a user."""
        taste = (self.users(user_ids_N) * candidates_ND).sum(dim=-1)
        scores: Tensor = taste + self.appeal(candidates_ND).squeeze(-1)
        return scores


def pairwise_loss(scores_N: Tensor) -> Tensor:
    """Mean of ``-ln sigmoid(clicked - other)`` (BPR-Opt).

    Args:
        scores_N: N even; the first half are clicked videos, the second half, in the same order,
            videos that the same users saw and did not click.
    """
    clicked, other = scores_N.chunk(2)
    return torch.mean(-functional.logsigmoid(clicked - other))
