"""THACIL: temporal hierarchical attention at category and item level.

Chen et al., ACM MM 2018; equation numbers in comments are the paper's.

U users  N videos or impressions  L history length = B blocks x S clicks
F content feature  C categories  D = Df + Dc embedding  H heads  K = D / H  E hidden units
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.layers import AdditiveAttention, masked_softmax
from training.models.interaction import Interaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ThacilShape:
    """Sizes of the network; the defaults are the paper's (section 4.3).

    Attributes:
        feature_dim: F, width of a content feature; read from the data.
        num_categories: C; category C, and any outside 0..C-1, is unknown: a zero embedding.
        item_dim: Df, width of the projected content feature.
        category_dim: Dc, width of a category embedding.
        num_heads: H; must divide Df + Dc.
        num_blocks: B, temporal blocks.
        block_size: S, clicks per block.
        hidden_dim: E, width of the feed-forward layer.
        interaction: the feed-forward layer sees u * x beside the paper's [u; x], see ``Interaction``.
        block_age: a trained vector of its age is added to each block after the norm.
    """

    feature_dim: int
    num_categories: int
    item_dim: int = 64
    category_dim: int = 64
    num_heads: int = 8
    num_blocks: int = 8
    block_size: int = 20
    hidden_dim: int = 128
    interaction: bool = False
    block_age: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must divide item_dim + category_dim "
                f"({self.embedding_dim})"
            )

    @property
    def embedding_dim(self) -> int:
        """D, width of an embedded video."""
        return self.item_dim + self.category_dim

    @property
    def history_length(self) -> int:
        """L, clicks that the network sees at most."""
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Profile:
    """What the network keeps of users.

    Attributes:
        blocks: u, [U, B, D].
        valid: [U, B], true where a block holds at least one click.
    """

    blocks: Tensor
    valid: Tensor


class ForwardSelfAttention(nn.Module):
    """Forward multi-head self-attention between blocks (eqs. 6 to 8).

    Differs from the paper, as the reference does: W_p and b_p are shared by the heads, and the
    activation is 5 tanh(x / 5). A block without a valid predecessor (the first one) takes the
    plain mean over all B blocks, itself and later ones included.
    """

    def __init__(
        self, embedding_dim: int, *, num_heads: int, num_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads, self.num_blocks = num_heads, num_blocks
        head_dim = embedding_dim // num_heads
        self.query = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.key = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.value = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(head_dim))
        self.score = nn.Linear(head_dim, head_dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, local_UBD: Tensor, valid_UB: Tensor) -> Tensor:
        """Summarise what came before each block: [U, B', D], valid [U, B'] -> [U, B', D].

        B' may be less than B when the blocks left out hold no click.
        """
        query_UBHK = self._heads(self.query, local_UBD)
        key_UBHK = self._heads(self.key, local_UBD)
        value_UBHK = self._heads(self.value, local_UBD)
        weights, mask_UIJ = self._weigh(query_UBHK, key_UBHK, valid_UB)
        has_earlier_UI = mask_UIJ.any(dim=2)[:, :, None, None, None]
        # 1/B, not 1/B': blocks that were left out count as zero vectors, as in the reference.
        weights = torch.where(has_earlier_UI, weights, 1.0 / self.num_blocks)
        # A padded block's value is zero already; masked all the same, to be safe by itself.
        weights = weights * valid_UB[:, None, :, None, None]
        return (weights * value_UBHK[:, None]).sum(dim=2).flatten(-2)

    def weights(self, local_UBD: Tensor, valid_UB: Tensor) -> tuple[Tensor, Tensor]:
        """Say what each block i takes of each block j: [U, B', B', D], over axis 2.

        The second value, [U, B', B'], is true where j is valid and comes before i. Where no j
        does, :meth:`forward` takes its mean over all B blocks in place of these weights.
        """
        query_UBHK = self._heads(self.query, local_UBD)
        key_UBHK = self._heads(self.key, local_UBD)
        weights_UIJHK, mask_UIJ = self._weigh(query_UBHK, key_UBHK, valid_UB)
        return weights_UIJHK.flatten(-2), mask_UIJ

    def _weigh(
        self, query_UBHK: Tensor, key_UBHK: Tensor, valid_UB: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Row i attends with its key to the query of column j: a renaming of eq. 6.
        pair_UIJHK = key_UBHK[:, :, None] + query_UBHK[:, None, :] + self.bias
        scores_UIJHK = self.drop(self.score(5.0 * torch.tanh(pair_UIJHK / 5.0)))
        blocks = valid_UB.shape[1]
        earlier_IJ = torch.ones(blocks, blocks, dtype=torch.bool, device=valid_UB.device).tril(
            -1
        )  # eq. 7
        mask_UIJ = earlier_IJ & valid_UB[:, None, :]
        return masked_softmax(scores_UIJHK, mask_UIJ[..., None, None], dim=2), mask_UIJ

    def _heads(self, projection: nn.Linear, local_UBD: Tensor) -> Tensor:
        projected: Tensor = self.drop(projection(local_UBD))
        return projected.unflatten(-1, (self.num_heads, -1))


class Thacil(nn.Module):
    """The whole network, in the parts that serving runs at different times.

    Args:
        shape: sizes.
        dropout: after every projection of attention and head, the final logit included, as the
            reference does; 0 leaves only ``hidden_dropout``.
        hidden_dropout: on the hidden layer of the feed-forward part.
    """

    def __init__(
        self, shape: ThacilShape, *, dropout: float = 0.0, hidden_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shape = shape
        self.item_projection = nn.Linear(shape.feature_dim, shape.item_dim, bias=False)
        # Row C is the unknown category and padding: zero, and never trained.
        self.category_embedding = nn.Embedding(
            shape.num_categories + 1, shape.category_dim, padding_idx=shape.num_categories
        )
        self.category_attention = AdditiveAttention(
            shape.category_dim, shape.item_dim, dropout=dropout
        )
        self.item_attention = AdditiveAttention(shape.item_dim, shape.category_dim, dropout=dropout)
        self.self_attention = ForwardSelfAttention(
            shape.embedding_dim,
            num_heads=shape.num_heads,
            num_blocks=shape.num_blocks,
            dropout=dropout,
        )
        self.norm = nn.LayerNorm(shape.embedding_dim, eps=1e-8)
        # Differs from the paper where asked for: else only sums over earlier blocks tell old from new.
        self.age_embedding = (
            nn.Embedding(shape.num_blocks, shape.embedding_dim) if shape.block_age else None
        )
        self.target_attention = AdditiveAttention(
            shape.embedding_dim, shape.embedding_dim, dropout=dropout
        )
        self.hidden = nn.Linear(2 * shape.embedding_dim, shape.hidden_dim)
        # A plain layer once compact() has folded its parts into one.
        self.interaction: Interaction | nn.Linear | None = (
            Interaction(shape.item_dim, shape.category_dim, shape.hidden_dim)
            if shape.interaction
            else None
        )
        self.output = nn.Linear(shape.hidden_dim, 1)
        self.drop = nn.Dropout(dropout)
        self.hidden_drop = nn.Dropout(max(dropout, hidden_dropout))

    def embed(self, features: Tensor, categories: Tensor) -> Tensor:
        """Embed videos (eqs. 1 and 2): features [..., F], categories [...] -> [..., D].

        Any category outside 0..C-1 is unknown.
        """
        unknown = self.shape.num_categories
        known = (categories >= 0) & (categories < unknown)
        embedded: Tensor = self.category_embedding(categories.masked_fill(~known, unknown))
        return torch.cat([self.item_projection(features), embedded], dim=-1)

    def local(self, clicks_MSD: Tensor, mask_MS: Tensor) -> Tensor:
        """Summarise blocks by attention over their own clicks (eqs. 3 to 5).

        Args:
            clicks_MSD: embedded clicks of M blocks, oldest first, padded at the end with zeros.
            mask_MS: true where a click exists.

        Returns:
            l, [M, D]; zeros for a block without clicks.
        """
        item, category = clicks_MSD.split([self.shape.item_dim, self.shape.category_dim], dim=-1)
        item_weights, category_weights = self.local_weights(clicks_MSD, mask_MS)
        return torch.cat(
            [(item_weights * item).sum(dim=-2), (category_weights * category).sum(dim=-2)], dim=-1
        )

    def local_weights(self, clicks_MSD: Tensor, mask_MS: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the clicks of a block, feature by feature: [M, S, Df] and [M, S, Dc]."""
        item, category = clicks_MSD.split([self.shape.item_dim, self.shape.category_dim], dim=-1)
        mask = mask_MS[..., None]
        category_weights = masked_softmax(self.category_attention(category, item), mask, dim=-2)
        item_weights = masked_softmax(self.item_attention(item, category), mask, dim=-2)
        return item_weights, category_weights

    def profile(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Profile:
        """Profile users from their embedded histories (section 3.2).

        Args:
            clicks_ULD: oldest first, padded at the end with zeros; L a multiple of the block size,
                at most B x S.
            lengths_U: clicks of each user, 0 to L.
        """
        clicks_UBSD = clicks_ULD.unflatten(1, (-1, self.shape.block_size))
        mask_UBS = self._mask(clicks_ULD, lengths_U).unflatten(1, (-1, self.shape.block_size))
        return self.fuse(self.local(clicks_UBSD, mask_UBS), lengths_U)

    def profile_skipping_empty(self, clicks_ULD: Tensor, lengths_U: Tensor) -> Profile:
        """The same as :meth:`profile`, computing only blocks that hold a click.

        For training and evaluation, where most histories are short; its shapes depend on the
        data, so it cannot be exported.
        """
        size = self.shape.block_size
        valid_UB = self._mask(clicks_ULD, lengths_U)[:, ::size]
        clicks_MSD = clicks_ULD.unflatten(1, (-1, size))[valid_UB]
        mask_MS = self._mask(clicks_ULD, lengths_U).unflatten(1, (-1, size))[valid_UB]
        local_UBD = clicks_ULD.new_zeros(*valid_UB.shape, self.shape.embedding_dim)
        local_UBD[valid_UB] = self.local(clicks_MSD, mask_MS)
        return self.fuse(local_UBD, lengths_U)

    def fuse(self, local_UBD: Tensor, lengths_U: Tensor) -> Profile:
        """Add what came before to each block, normalise, and say how old it is: u = LN(l + g) + a.

        Args:
            local_UBD: the blocks' own means; blocks behind the newest may be left out.
            lengths_U: clicks of each user.
        """
        begins_B = self.shape.block_size * torch.arange(local_UBD.shape[1], device=lengths_U.device)
        valid_UB = begins_B < lengths_U[:, None]
        earlier_UBD = self.self_attention(local_UBD, valid_UB)
        return Profile(self.normalise(local_UBD + earlier_UBD, lengths_U), valid_UB)

    def normalise(self, fused_UBD: Tensor, lengths_U: Tensor) -> Tensor:
        """Normalise blocks, and add the vector of their age where that was asked for.

        The newest block with a click is of age 0, and so are the empty ones behind it: those of a
        user without clicks are all alike.
        """
        blocks_UBD: Tensor = self.norm(fused_UBD)
        if self.age_embedding is None:
            return blocks_UBD
        newest_U = (lengths_U - 1).clamp(min=0) // self.shape.block_size
        places_B = torch.arange(blocks_UBD.shape[1], device=lengths_U.device)
        age_UB = (newest_U[:, None] - places_B).clamp(min=0)
        return blocks_UBD + self.age_embedding(age_UB)

    def target(self, profile: Profile, candidates_ND: Tensor) -> Tensor:
        """Weigh the blocks by one candidate per profile (eq. 9): N profiles -> [N, D]."""
        return (self.target_weights(profile, candidates_ND) * profile.blocks).sum(dim=1)

    def target_weights(self, profile: Profile, candidates_ND: Tensor) -> Tensor:
        """Weigh the blocks by one candidate per profile, feature by feature: [N, B, D]."""
        scores = self.target_attention(profile.blocks, candidates_ND[:, None])
        return masked_softmax(scores, profile.valid[..., None], dim=1)

    def head(self, user_ND: Tensor, candidates_ND: Tensor) -> Tensor:
        """Feed-forward part (section 3.3): logits [N]."""
        hidden = self.hidden(torch.cat([user_ND, candidates_ND], dim=-1))
        if self.interaction is not None:
            hidden = hidden + self.interaction(user_ND * candidates_ND)
        logit: Tensor = self.drop(self.output(self.hidden_drop(torch.relu(hidden))))
        return logit.squeeze(-1)

    def forward(
        self, clicks_ULD: Tensor, lengths_U: Tensor, user_N: Tensor, candidates_ND: Tensor
    ) -> Tensor:
        """Score impressions; a user's profile is computed once for all of them.

        Args:
            clicks_ULD: embedded histories, padded.
            lengths_U: their lengths.
            user_N: for each impression, the row of its user in ``clicks_ULD``.
            candidates_ND: embedded candidates.

        Returns:
            Logits [N].
        """
        profile = self.profile_skipping_empty(clicks_ULD, lengths_U)
        # index_select, not fancy indexing: its backward pass is the faster one on CPUs.
        chosen = Profile(
            profile.blocks.index_select(0, user_N), profile.valid.index_select(0, user_N)
        )
        return self.head(self.target(chosen, candidates_ND), candidates_ND)

    @staticmethod
    def _mask(clicks_ULD: Tensor, lengths_U: Tensor) -> Tensor:
        positions = torch.arange(clicks_ULD.shape[1], device=clicks_ULD.device)
        return positions[None] < lengths_U[:, None]


class VideoEncoder(nn.Module):
    """The graph that runs once per video: everything that depends on the video alone.

    A row is [W4 x + b3 | the video's half of the first feed-forward layer + its bias | x]: what
    the head takes of a candidate first, what a history takes of a click behind it.
    """

    def __init__(self, network: Thacil) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, category: Tensor) -> Tensor:
        """Encode videos: features [N, F], category [N] -> rows [N, R]."""
        net = self.network
        x = net.embed(features, category)
        _, item_half = net.hidden.weight.split(net.shape.embedding_dim, dim=1)
        attention = net.target_attention.query(x) + net.target_attention.value.bias
        return torch.cat([attention, functional.linear(x, item_half, net.hidden.bias), x], dim=-1)


class UserProfile(nn.Module):
    """The graph that runs after a click. What is kept of a block is u."""

    def __init__(self, network: Thacil) -> None:
        super().__init__()
        self.network = network

    def forward(self, history_rows: Tensor, history_length: Tensor) -> Tensor:
        """Profile users: history_rows [U, K, S, R], history_length [U] -> profiles [U, K, P].

        Blocks without a click are to be cut off, but for the first.
        """
        net, size = self.network, self.network.shape.block_size
        clicks_UKSD = history_rows[..., -net.shape.embedding_dim :]
        starts_K = size * torch.arange(history_rows.shape[1], device=history_rows.device)
        places_KS = starts_K[:, None] + torch.arange(size, device=history_rows.device)
        mask_UKS = places_KS[None] < history_length[:, None, None]
        return net.fuse(net.local(clicks_UKSD, mask_UKS), history_length).blocks
