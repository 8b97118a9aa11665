"""Impressions with the history each may see, ordered into batches that share work.

Impressions of one user between two clicks see the same history, and the histories of neighbouring
impressions overlap: chunks of a user's impressions stay together in a step, which embeds their
clicks once and computes each history's profile once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model_store import IntArray
from training.batches import Batch, Histories, Policy, VideoTable, make_batch
from training.histories import ClickHistories
from training.impressions import Impressions

# Of one user's impressions to be scored this many share a row of clicks: more would make the
# rows of users who clicked a lot meanwhile too wide.
_SCORED_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """An epoch's order; what a step holds depends on its number alone, so any can be the first.

    Attributes:
        examples: whose impressions they are.
        rows: [n], positions in the impressions, step after step.
        chunks: [n], rows of one chunk are of one user and share a row of clicks.
        batch_size: rows of a step; the last one may have fewer.
        seed: of what is drawn within steps.
    """

    examples: Examples
    rows: IntArray
    chunks: IntArray
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield the steps from this one on."""
        for step in range(first, len(self)):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            rng = np.random.default_rng([self.seed, step])
            yield self.examples.batch(self.rows[part], self.chunks[part], rng)


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
        policy: Policy,
        history_length: int,
        block_size: int,
    ) -> None:
        self.impressions, self._candidates = impressions, candidates
        before = impressions.timestamps_ms if policy == "causal" else None
        starts, ends = histories.bounds(impressions.user_ids, before)
        if policy == "none":
            starts, ends = np.zeros((2, len(impressions)), np.int64)
        self._histories = Histories(
            histories, history_videos, starts, ends, policy, history_length, block_size
        )
        # Users first: empty histories are all alike, and a chunk is of one user.
        self._order = np.lexsort((ends, starts, impressions.user_ids)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.impressions)

    @property
    def num_candidates(self) -> int:
        """Rows of the table that the impressions' item ids index."""
        return len(self._candidates.features)

    @property
    def feature_dim(self) -> int:
        """F, width of the candidates' content features."""
        return int(self._candidates.features.shape[1])

    @property
    def rows_per_history(self) -> float:
        """How many impressions see the same history, on average."""
        ends = self._histories.ends[self._order]
        return len(ends) / (1 + int(np.count_nonzero(ends[1:] != ends[:-1])))

    def candidate_contents(self, batch_size: int) -> Iterator[tuple[IntArray, Tensor, Tensor]]:
        """Every video that an impression names, once: item ids, features and categories."""
        named = np.zeros(self.num_candidates, bool)
        named[self.impressions.item_ids] = True
        items = np.flatnonzero(named)
        for begin in range(0, len(items), batch_size):
            part = items[begin : begin + batch_size]
            features = self._candidates.features[part].astype(np.float32)
            categories = self._candidates.categories[part]
            yield part, torch.from_numpy(features), torch.from_numpy(categories)

    def sequential(
        self, batch_size: int, *, with_candidates: bool = True, together: int = _SCORED_TOGETHER
    ) -> Iterator[Batch]:
        """Batches for evaluation: every history in one batch, if it is not larger than that.

        Args:
            batch_size: impressions per batch.
            with_candidates: if not, ``candidate`` of a batch holds item ids, and their contents
                come from :meth:`candidate_contents`.
            together: of one user's impressions so many share a row of clicks; where they all see
                the same history more are faster.
        """
        begins = range(0, len(self), batch_size)
        for begin in tqdm(begins, desc="scoring", mininterval=2, leave=False, disable=None):
            rows = self._order[begin : begin + batch_size]
            yield make_batch(
                self.impressions,
                self._candidates,
                self._histories,
                rows,
                chunks=self._chunks(rows, together),
                rng=None,
                with_candidates=with_candidates,
            )

    def shuffled(
        self,
        batch_size: int,
        rng: np.random.Generator,
        *,
        negatives: float | None = None,
        rows_per_user: int = 32,
    ) -> Plan:
        """Plan training steps: chunks of users' impressions in random order.

        Args:
            batch_size: impressions per step; an incomplete last batch is dropped, as its
                gradient would be noisier, unless it is the only one.
            rng: the epoch's randomness.
            negatives: negatives kept per positive of each user; all when not given.
            rows_per_user: neighbouring impressions of a user that stay together; where a user's
                chunks begin is drawn anew each epoch. 1 mixes all impressions.
        """
        rows = self._order if negatives is None else self._sample_negatives(negatives, rng)
        chunks = self._chunks(rows, rows_per_user, rng)
        place = rng.permutation(int(chunks[-1]) + 1)[chunks]
        order = np.argsort(place, kind="stable")
        stop = max(len(rows) - len(rows) % batch_size, min(len(rows), batch_size))
        order = order[:stop]
        return Plan(self, rows[order], place[order], batch_size, int(rng.integers(1 << 62)))

    def _chunks(
        self, rows: IntArray, size: int, rng: np.random.Generator | None = None
    ) -> IntArray:
        """Number the chunks that ordered rows fall into: at most ``size`` rows of one user each.

        Rows before the user's first click have chunks of their own: their empty history does not
        lie among the user's clicks.
        """
        users, starts = self.impressions.user_ids[rows], self._histories.starts[rows]
        new_run = np.r_[True, (users[1:] != users[:-1]) | (starts[1:] != starts[:-1])]
        run = np.cumsum(new_run) - 1
        rank = np.arange(len(rows)) - np.flatnonzero(new_run)[run]
        if rng is not None:
            rank += rng.integers(0, size, int(run[-1]) + 1)[run]
        # Consecutive by construction, so a change of either starts a chunk.
        rank //= size
        return np.cumsum(np.r_[False, (rank[1:] != rank[:-1]) | new_run[1:]])

    def pairs(self, batch_size: int, rng: np.random.Generator) -> Plan:
        """Plan steps for a pairwise loss: clicks, then as many videos passed over by their users.

        Every click whose user also passed a video over comes once, with one of those drawn anew
        at random (Rendle et al. 2009, section 4.2).

        Args:
            batch_size: impressions per step, rounded down to an even number; at least one pair.
            rng: the epoch's randomness.
        """
        clicks, others = self._draw_pairs(rng)
        half = min(max(1, batch_size // 2), max(1, len(clicks)))
        stop = len(clicks) - len(clicks) % half
        steps = [pairs[:stop].reshape(-1, half) for pairs in (clicks, others)]
        rows = np.concatenate(steps, axis=1).reshape(-1)
        return Plan(self, rows, np.arange(len(rows)), 2 * half, int(rng.integers(1 << 62)))

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

    def batch(self, rows: IntArray, chunks: IntArray, rng: np.random.Generator | None) -> Batch:
        """Build the batch of some impressions; see :func:`training.batches.make_batch`."""
        return make_batch(
            self.impressions, self._candidates, self._histories, rows, chunks=chunks, rng=rng
        )
