"""THACIL as one would first write it in PyTorch: every impression carries its own padded history.

The baseline of ``benchmarks/training.py``. It is correct (its logits are held against the trainer's
before anything is timed) and it stays as it is: no sharing between impressions, no shortcuts.

N impressions  L clicks = B blocks x S clicks  F features  C categories  D = Df + Dc  H heads
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.interactions import Features, Impressions

Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class PerRowDataset(Dataset[Row]):
    """One impression at a time: history features, categories and mask, candidate, label.

    Args:
        impressions: what is learnt from or scored.
        clicks: impressions whose clicks make the histories.
        features: [videos, F] of the candidates.
        click_features: [videos, F] of the clicked videos.
        categories: C; also the mark of padding.
        length: L.
    """

    def __init__(
        self,
        impressions: Impressions,
        clicks: Impressions,
        *,
        features: Features,
        click_features: Features,
        categories: int,
        length: int,
    ) -> None:
        self.impressions, self.features, self.click_features = impressions, features, click_features
        self.categories, self.length = categories, length
        self.clicks: dict[int, list[tuple[int, int, int]]] = {}
        for row in np.flatnonzero(clicks.labels == 1):
            self.clicks.setdefault(int(clicks.user_ids[row]), []).append(
                (
                    int(clicks.timestamps_ms[row]),
                    int(clicks.item_ids[row]),
                    int(clicks.categories[row]),
                )
            )
        for history in self.clicks.values():
            history.sort()

    def __len__(self) -> int:
        return len(self.impressions)

    def __getitem__(self, row: int) -> Row:
        """Pad the newest L clicks strictly before the impression."""
        log = self.impressions
        history = self.clicks.get(int(log.user_ids[row]), [])
        end = bisect_left(history, (int(log.timestamps_ms[row]), -1, -1))
        seen = history[max(0, end - self.length) : end]
        features = np.zeros((self.length, self.features.shape[1]), np.float32)
        categories = np.full(self.length, self.categories, np.int64)
        mask = np.zeros(self.length, bool)
        if seen:
            features[: len(seen)] = self.click_features[[item for _, item, _ in seen]]
            categories[: len(seen)] = [category for _, _, category in seen]
            mask[: len(seen)] = True
        return (
            torch.from_numpy(features),
            torch.from_numpy(categories),
            torch.from_numpy(mask),
            torch.from_numpy(np.asarray(self.features[log.item_ids[row]], np.float32)),
            torch.tensor(int(log.categories[row])),
            torch.tensor(log.labels[row]),
        )


class Attention(nn.Module):
    """``W relu(W1 x + W2 q + b)``, a softmax over positions and a weighted sum."""

    def __init__(self, value_dim: int, query_dim: int) -> None:
        super().__init__()
        self.value = nn.Linear(value_dim, value_dim)
        self.query = nn.Linear(query_dim, value_dim, bias=False)
        self.score = nn.Linear(value_dim, value_dim, bias=False)

    def forward(self, values: Tensor, queries: Tensor, mask: Tensor) -> Tensor:
        """Attend to values [..., positions, d]; the mask says which positions count."""
        scores = self.score(torch.relu(self.value(values) + self.query(queries)))
        scores = scores.masked_fill(~mask[..., None], -1e9)
        return (torch.softmax(scores, dim=-2) * values).sum(dim=-2)


class BlockAttention(nn.Module):
    """Forward multi-head self-attention between the blocks."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim // heads))
        self.score = nn.Linear(dim // heads, dim // heads, bias=False)

    def forward(self, local: Tensor, valid: Tensor) -> Tensor:
        """Summarise the blocks before each block: local [N, B, D], valid [N, B]."""
        query, key, value = (
            layer(local).unflatten(-1, (self.heads, -1))
            for layer in (self.query, self.key, self.value)
        )
        pairs = key[:, :, None] + query[:, None] + self.bias
        scores = self.score(5 * torch.tanh(pairs / 5))
        count = local.shape[1]
        allowed = torch.ones(count, count, dtype=torch.bool).tril(-1) & valid[:, None]
        scores = scores.masked_fill(~allowed[..., None, None], -1e9)
        weights = torch.softmax(scores, dim=2)
        # A block without a valid predecessor takes the mean over all blocks.
        weights = torch.where(allowed.any(2)[:, :, None, None, None], weights, 1 / count)
        weights = weights * valid[:, None, :, None, None]
        return (weights * value[:, None]).sum(2).flatten(-2)


class Likeness(nn.Module):
    """Of u * x every feature, and ten times its sum over contents and over categories."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(128, 128, bias=False)
        self.likeness = nn.Linear(2, 128, bias=False)

    def forward(self, product: Tensor) -> Tensor:
        """[N, 128] -> [N, 128]."""
        weighed: Tensor = self.product(product)
        return weighed + self.likeness(10 * product.unflatten(-1, (2, 64)).sum(-1))


class PerRowThacil(nn.Module):
    """The network of the preset ``modern``; named as the trainer's."""

    def __init__(self, feature_dim: int, categories: int, *, blocks: int = 8) -> None:
        super().__init__()
        self.blocks = blocks
        self.item_projection = nn.Linear(feature_dim, 64, bias=False)
        self.category_embedding = nn.Embedding(categories + 1, 64, padding_idx=categories)
        self.category_attention = Attention(64, 64)
        self.item_attention = Attention(64, 64)
        self.self_attention = BlockAttention(128, 8)
        self.norm = nn.LayerNorm(128, eps=1e-8)
        self.target_attention = Attention(128, 128)
        self.hidden = nn.Linear(256, 128)
        self.age_embedding = nn.Embedding(blocks, 128)
        self.interaction = Likeness()
        self.output = nn.Linear(128, 1)

    def forward(
        self,
        features: Tensor,
        categories: Tensor,
        mask: Tensor,
        candidate_features: Tensor,
        candidate_category: Tensor,
    ) -> Tensor:
        """Logits [N] of N impressions: features [N, L, F], categories and mask [N, L]."""
        item = self.item_projection(features).unflatten(1, (self.blocks, -1))
        category = self.category_embedding(categories).unflatten(1, (self.blocks, -1))
        mask = mask.unflatten(1, (self.blocks, -1))
        local = torch.cat(
            [
                self.item_attention(item, category, mask),
                self.category_attention(category, item, mask),
            ],
            dim=-1,
        )
        valid = mask.any(-1)
        age = (valid.sum(1, keepdim=True) - 1 - torch.arange(self.blocks)).clamp(min=0)
        user = self.norm(local + self.self_attention(local, valid)) + self.age_embedding(age)
        candidate = torch.cat(
            [self.item_projection(candidate_features), self.category_embedding(candidate_category)],
            dim=-1,
        )
        chosen = self.target_attention(user, candidate[:, None], valid)
        hidden = self.hidden(torch.cat([chosen, candidate], dim=-1))
        hidden = torch.relu(hidden + self.interaction(chosen * candidate))
        logits: Tensor = self.output(hidden).squeeze(-1)
        return logits
