"""Impressions with the history each may see, cut into batches that share profiles.

Impressions of one user between two clicks see the same history: such a group stays together, so
that a step computes its profile once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model_store import FloatArray, IntArray
from training.interactions import ClickHistories, Impressions


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's impressions; V distinct videos, U distinct histories, N impressions.

    Attributes:
        rows: [N], positions in the impressions the batch was cut from.
        features: [V + 1, F]; the last one is padding, zeros.
        categories: [V + 1]; the last one is the unknown category.
        history: [U, L], index into the V + 1 videos, oldest first, padded at the end.
        lengths: [U].
        user: [N], index into U.
        user_ids: [N], as in the log.
        candidate: [N], index into V.
        labels: [N], 0 or 1.
    """

    rows: IntArray
    features: Tensor
    categories: Tensor
    history: Tensor
    lengths: Tensor
    user: Tensor
    user_ids: Tensor
    candidate: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class VideoTable:
    """Contents of the videos that histories or candidates name.

    Attributes:
        features: [videos, F].
        categories: [videos]; C for a video that the log never names.
        num_categories: C; also the mark of padding.
    """

    features: FloatArray
    categories: IntArray
    num_categories: int

    @classmethod
    def from_log(
        cls, features: FloatArray, impressions: Impressions, num_categories: int
    ) -> VideoTable:
        """Take every video's category from the impressions that name it."""
        categories = np.full(len(features), num_categories, np.int64)
        categories[impressions.item_ids] = impressions.categories
        return cls(features, categories, num_categories)


class Examples:
    """Impressions, each with the clicks it may see.

    Args:
        impressions: what is learnt from or scored.
        candidates: the video table that the impressions' item ids index.
        histories: the users' clicks.
        history_videos: the video table that the clicks' item ids index.
        policy: ``causal`` (strictly before the impression), ``paper`` (all of them) or ``none``,
            for models that read no history.
        history_length: L, newest clicks that are seen.
        block_size: histories of a batch are padded to a multiple of it.
    """

    def __init__(
        self,
        impressions: Impressions,
        candidates: VideoTable,
        histories: ClickHistories,
        history_videos: VideoTable,
        *,
        policy: Literal["causal", "paper", "none"],
        history_length: int,
        block_size: int,
    ) -> None:
        self.impressions = impressions
        self._candidates, self._history_videos = candidates, history_videos
        self._histories, self._policy = histories, policy
        self._length, self._block_size = history_length, block_size
        before = impressions.timestamps_ms if policy == "causal" else None
        self._starts, self._ends = histories.bounds(impressions.user_ids, before)
        if policy == "none":
            self._starts, self._ends = np.zeros((2, len(impressions)), np.int64)
        # Group key: the end of a history is unique to its user, save for empty ones, which
        # are all alike.
        self._order = np.lexsort((self._ends, self._starts)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.impressions)

    def sequential(self, batch_size: int) -> Iterator[Batch]:
        """Batches for evaluation: every history in one batch, if it is not larger than that."""
        for begin in range(0, len(self), batch_size):
            yield self._batch(self._order[begin : begin + batch_size], None)

    def shuffled(
        self, batch_size: int, rng: np.random.Generator, *, negatives: float | None = None
    ) -> Iterator[Batch]:
        """Batches for training: groups in random order, all or sampled negatives.

        Args:
            batch_size: impressions per step; an incomplete last batch is dropped, as its
                gradient would be noisier, unless it is the only one.
            rng: the epoch's randomness.
            negatives: negatives kept per positive of each user; all when not given.
        """
        rows = self._order if negatives is None else self._sample_negatives(negatives, rng)
        rows = self._shuffle_groups(rows, rng)
        stop = max(len(rows) - len(rows) % batch_size, min(len(rows), batch_size))
        for begin in range(0, stop, batch_size):
            yield self._batch(rows[begin : begin + batch_size], rng)

    def pairs(self, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches for a pairwise loss: clicks, then as many videos passed over by their users.

        Every click whose user also passed a video over comes once, with one of those drawn anew
        at random (Rendle et al. 2009, section 4.2).

        Args:
            batch_size: impressions per step, rounded down to an even number; at least one pair.
            rng: the epoch's randomness.
        """
        clicks, others = self._draw_pairs(rng)
        half = max(1, batch_size // 2)
        stop = max(len(clicks) - len(clicks) % half, min(len(clicks), half))
        for begin in range(0, stop, half):
            part = slice(begin, begin + half)
            yield self._batch(np.concatenate([clicks[part], others[part]]), rng)

    def _draw_pairs(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        labels, users = self.impressions.labels, self.impressions.user_ids
        clicks, passed = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        passed = passed[np.argsort(users[passed], kind="stable")]
        first = np.searchsorted(users[passed], users[clicks], side="left")
        count = np.searchsorted(users[passed], users[clicks], side="right") - first
        clicks, first, count = (a[count > 0] for a in (clicks, first, count))
        others = passed[first + (rng.random(len(clicks)) * count).astype(np.int64)]
        order = rng.permutation(len(clicks))
        return clicks[order], others[order]

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch has when no negatives are sampled."""
        return max(1, len(self) // batch_size)

    def _shuffle_groups(self, rows: IntArray, rng: np.random.Generator) -> IntArray:
        starts, ends = self._starts[rows], self._ends[rows]
        change = np.r_[False, (ends[1:] != ends[:-1]) | (starts[1:] != starts[:-1])]
        group = np.cumsum(change)
        place = rng.permutation(int(group[-1]) + 1)[group] if len(rows) else group
        return rows[np.lexsort((rng.random(len(rows)), place))]

    def _sample_negatives(self, ratio: float, rng: np.random.Generator) -> IntArray:
        labels, users = self.impressions.labels, self.impressions.user_ids
        order = np.lexsort((rng.random(len(labels)), -labels, users))
        _, first, inverse, counts = np.unique(
            users[order], return_index=True, return_inverse=True, return_counts=True
        )
        positives = np.add.reduceat(labels[order], first) if len(order) else counts
        rank = np.arange(len(order)) - first[inverse]
        keep = rank < np.floor(positives * (1 + ratio))[inverse]
        chosen = np.zeros(len(order), bool)
        chosen[order[keep]] = True
        return self._order[chosen[self._order]]

    def _batch(self, rows: IntArray, rng: np.random.Generator | None) -> Batch:
        keys = np.stack([self._starts[rows], self._ends[rows]], axis=1)
        distinct, user = np.unique(keys, axis=0, return_inverse=True)
        positions, lengths = self._positions(distinct, rng)
        # Distinct videos of history and candidates apart: they may live in two item spaces.
        seen, history = np.unique(
            self._histories.item_ids[positions.clip(min=0)], return_inverse=True
        )
        wanted, candidate = np.unique(self.impressions.item_ids[rows], return_inverse=True)
        padding = len(seen) + len(wanted)
        history = np.where(positions < 0, padding, history.reshape(positions.shape))
        width = self._history_videos.features.shape[1]
        features = np.concatenate(
            [
                self._history_videos.features[seen],
                self._candidates.features[wanted],
                np.zeros((1, width), np.float32),
            ]
        )
        categories = np.concatenate(
            [
                self._history_videos.categories[seen],
                self._candidates.categories[wanted],
                [self._history_videos.num_categories],
            ]
        )
        return Batch(
            rows=rows,
            features=torch.from_numpy(features),
            categories=torch.from_numpy(categories),
            history=torch.from_numpy(history),
            lengths=torch.from_numpy(lengths),
            user=torch.from_numpy(user.reshape(-1)),
            user_ids=torch.from_numpy(self.impressions.user_ids[rows]),
            candidate=torch.from_numpy(candidate + len(seen)),
            labels=torch.from_numpy(self.impressions.labels[rows]),
        )

    def _positions(
        self, bounds: IntArray, rng: np.random.Generator | None
    ) -> tuple[IntArray, IntArray]:
        starts, ends = bounds[:, 0], bounds[:, 1]
        if self._policy == "paper" and rng is not None:
            return self._random_positions(starts, ends, rng)
        lengths = np.minimum(ends - starts, self._length)
        columns = np.arange(self._padded(lengths))
        positions = (ends - lengths)[:, None] + columns
        return np.where(columns < lengths[:, None], positions, -1), lengths

    def _random_positions(
        self, starts: IntArray, ends: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray]:
        """A random ordered subset of histories that are too long, as the reference takes."""
        lengths = np.minimum(ends - starts, self._length)
        positions = np.full((len(starts), self._padded(lengths)), -1, np.int64)
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            count = int(lengths[row])
            chosen = np.arange(start, end)
            if end - start > count:
                chosen = np.sort(rng.choice(chosen, count, replace=False))
            positions[row, :count] = chosen
        return positions, lengths

    def _padded(self, lengths: IntArray) -> int:
        longest = max(1, int(lengths.max(initial=0)))
        return -(-longest // self._block_size) * self._block_size
