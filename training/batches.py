"""One step's impressions as tensors, laid out so that histories of a user share their clicks.

Hides how positions in the columns of a log become a batch, without Python per row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model_store import IntArray
from training.features import Features
from training.histories import ClickHistories
from training.impressions import Impressions

_CELLS_PER_DRAW = 1 << 22

Policy = Literal["causal", "paper", "none"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's impressions.

    N impressions see U distinct histories, which lie in G rows of up to W clicks; V click places
    and candidates are embedded in all.

    Attributes:
        rows: [N], positions in the impressions the batch was cut from.
        features: [V + 1, F]; the clicks, then the N candidates, then padding, zeros.
        categories: [V + 1]; the last one is the unknown category.
        clicks: [G, W], index into the V + 1 videos, oldest first, padded at the end.
        group: [U], the row of ``clicks`` that a history lies in; ascending.
        first: [U], where in that row the history begins.
        lengths: [U].
        user: [N], index into U.
        user_ids: [N], as in the log.
        candidate: [N], index into V.
        labels: [N], 0 or 1.
        block_size: histories are padded to a multiple of it.
    """

    rows: IntArray
    features: Tensor
    categories: Tensor
    clicks: Tensor
    group: Tensor
    first: Tensor
    lengths: Tensor
    user: Tensor
    user_ids: Tensor
    candidate: Tensor
    labels: Tensor
    block_size: int

    @property
    def history(self) -> Tensor:
        """[U, L], every history by itself: index into the V + 1 videos, padded at the end."""
        columns = torch.arange(self.padded(int(self.lengths.max())), device=self.clicks.device)
        inside = columns < self.lengths[:, None]
        place = (self.first[:, None] + columns).clamp(max=self.clicks.shape[1] - 1)
        return self.clicks[self.group[:, None], place].where(inside, len(self.features) - 1)

    def padded(self, longest: int) -> int:
        """Say how wide histories are kept of which the longest has so many clicks."""
        return max(1, -(-longest // self.block_size)) * self.block_size

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device; copies from pinned memory do not wait."""
        names = [name for name in self.__slots__ if isinstance(getattr(self, name), Tensor)]
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class VideoTable:
    """Contents of the videos that histories or candidates name.

    Attributes:
        features: [videos, F], float16 or float32, often memory-mapped.
        categories: [videos]; C for a video that the log never names.
        num_categories: C; also the mark of padding.
    """

    features: Features
    categories: IntArray
    num_categories: int

    @classmethod
    def from_log(
        cls, features: Features, impressions: Impressions, num_categories: int
    ) -> VideoTable:
        """Take every video's category from the impressions that name it."""
        categories = np.full(len(features), num_categories, np.int64)
        categories[impressions.item_ids] = impressions.categories
        return cls(features, categories, num_categories)


@dataclass(frozen=True, slots=True)
class Histories:
    """Which clicks each impression may see.

    Attributes:
        clicks: all users' clicks.
        videos: the table that the clicks' item ids index.
        starts: [n], for every impression where its user's clicks begin.
        ends: [n], and where those that it sees end; 0 and 0 when it sees none.
        policy: ``paper`` draws a random subset of longer histories in training.
        length: L, newest clicks that are seen.
        block_size: S.
    """

    clicks: ClickHistories
    videos: VideoTable
    starts: IntArray
    ends: IntArray
    policy: Policy
    length: int
    block_size: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Positions of a batch's clicks, [places]; the rest as in :class:`Batch`."""

    positions: IntArray
    clicks: IntArray
    group: IntArray
    first: IntArray
    lengths: IntArray
    user: IntArray


def make_batch(
    impressions: Impressions,
    candidates: VideoTable,
    histories: Histories,
    rows: IntArray,
    *,
    chunks: IntArray,
    rng: np.random.Generator | None,
    with_candidates: bool = True,
) -> Batch:
    """Build the batch of some impressions.

    Args:
        impressions: the columns that ``rows`` index.
        candidates: the table that the impressions' item ids index.
        histories: of all impressions.
        rows: [N]; rows of a chunk lie together, ordered by the end of their history.
        chunks: [N], rows of one chunk are of one user and share a row of clicks.
        rng: for the random subsets of the ``paper`` policy; without it the newest clicks are seen.
        with_candidates: if not, only clicks are embedded, and ``candidate`` holds item ids.
    """
    keys = histories.starts[rows], histories.ends[rows]
    if histories.policy == "paper" and rng is not None:
        layout = _subsets(*keys, chunks, histories.length, rng)
    else:
        layout = _windows(*keys, chunks, histories.length)
    clicked = histories.clicks.item_ids[layout.positions]
    wanted = impressions.item_ids[rows]
    embedded = wanted if with_candidates else wanted[:0]
    places = len(clicked)
    padding = places + len(embedded)
    features = np.empty((padding + 1, candidates.features.shape[1]), np.float32)
    features[:places] = histories.videos.features[clicked]
    features[places:padding] = candidates.features[embedded]
    features[padding] = 0
    categories = np.empty(padding + 1, np.int64)
    categories[:places] = histories.videos.categories[clicked]
    categories[places:padding] = candidates.categories[embedded]
    categories[padding] = histories.videos.num_categories
    candidate = np.arange(places, padding) if with_candidates else wanted
    tensors = {
        "features": features,
        "categories": categories,
        "clicks": np.where(layout.clicks < 0, padding, layout.clicks),
        "group": layout.group,
        "first": layout.first,
        "lengths": layout.lengths,
        "user": layout.user,
        "user_ids": impressions.user_ids[rows],
        "candidate": candidate,
        "labels": impressions.labels[rows],
    }
    as_tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
    return Batch(rows=rows, block_size=histories.block_size, **as_tensors)


def _windows(starts: IntArray, ends: IntArray, chunks: IntArray, length: int) -> _Layout:
    """Lay the histories of a chunk as windows over the clicks from its oldest to its newest."""
    new_chunk = np.r_[True, chunks[1:] != chunks[:-1]]
    new_history = new_chunk | np.r_[True, ends[1:] != ends[:-1]]
    of_history = np.flatnonzero(new_history)
    group = np.cumsum(new_chunk)[of_history] - 1
    lengths = np.minimum(ends[of_history] - starts[of_history], length)
    begins = ends[of_history] - lengths
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    lowest, highest = (
        np.minimum.reduceat(begins, edges),
        np.maximum.reduceat(ends[of_history], edges),
    )
    positions, clicks = _ranges(lowest, highest - lowest)
    user = np.cumsum(new_history) - 1
    return _Layout(positions, clicks, group, begins - lowest[group], lengths, user)


def _subsets(
    starts: IntArray, ends: IntArray, chunks: IntArray, length: int, rng: np.random.Generator
) -> _Layout:
    """Draw an ordered random subset of histories that are too long, as the reference does."""
    new_history = np.r_[True, (chunks[1:] != chunks[:-1]) | (ends[1:] != ends[:-1])]
    of_history = np.flatnonzero(new_history)
    starts, ends = starts[of_history], ends[of_history]
    lengths = np.minimum(ends - starts, length)
    positions, clicks = _ranges(starts, lengths)
    long = np.flatnonzero(ends - starts > length)
    for some in np.array_split(long, _pieces(ends[long] - starts[long])) if len(long) else ():
        chosen = _choose(ends[some] - starts[some], length, rng)
        positions[clicks[some, :length]] = starts[some, None] + chosen
    group = np.arange(len(of_history))
    user = np.cumsum(new_history) - 1
    return _Layout(positions, clicks, group, np.zeros_like(group), lengths, user)


def _pieces(counts: IntArray) -> int:
    """In how many pieces to draw, so that one user with very many clicks costs no memory."""
    return max(1, -(-len(counts) * int(counts.max(initial=0)) // _CELLS_PER_DRAW))


def _choose(counts: IntArray, length: int, rng: np.random.Generator) -> IntArray:
    """Draw ``length`` different numbers below each count, ascending: [n, length]."""
    columns = np.arange(int(counts.max(initial=length)))
    # The smallest of random keys are a draw without replacement.
    keys = np.where(columns < counts[:, None], rng.random((len(counts), len(columns))), 2.0)
    chosen = np.argpartition(keys, length - 1, axis=1)[:, :length]
    return np.sort(chosen, axis=1)


def _ranges(first: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Positions ``first[g] .. first[g] + counts[g]`` in one row, and their places, [G, W]; or -1."""
    offsets = np.cumsum(counts) - counts
    columns = np.arange(max(1, int(counts.max(initial=0))))
    inside = columns < counts[:, None]
    positions = (first[:, None] + columns)[inside]
    return positions, np.where(inside, offsets[:, None] + columns, -1)
