"""The rows that a process learns from, in shards of whole users that fit in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from model_store import FloatArray, IntArray
from training.batches import Batch
from training.config import RunConfig
from training.errors import DataError
from training.evaluate import train_examples
from training.examples import Examples
from training.impressions import Impressions
from training.interactions import ClickLog
from training.objective import count_steps, plan_epoch
from training.processes import ALONE, Processes
from training.split import Split, pieces
from training.user_counts import UserCounts, joined_counts

_VIDEOS_TOLD = 1_000
_MIXER = np.uint32(2_654_435_761)  # of Knuth's multiplicative hashing


class Shards:
    """What a process learns from.

    The users are shared out to the processes, so that each has about as many rows and reads no
    others. A share of up to ``data.shard_rows`` rows is one shard, kept from epoch to epoch. Of a
    larger one a shard at a time is in memory; shards come in random order, each shuffled.

    Args:
        config: sizes and seed.
        log: indexed.
        processes: who learns from the other users.

    Raises:
        DataError: there are fewer users than processes.
    """

    def __init__(self, config: RunConfig, log: ClickLog, processes: Processes = ALONE) -> None:
        self._config, self._processes = config, processes
        self._log, index = log.indexed()
        shares = _user_edges(index.offsets, processes.count)
        if len(shares) != processes.count + 1:
            raise DataError(
                f"the log's {len(index.users)} users cannot be shared out to {processes.count} "
                "processes: start fewer"
            )
        first, last = shares[processes.rank], shares[processes.rank + 1]
        own = index.offsets[first : last + 1]
        count = -(-int(own[-1] - own[0]) // config.data.shard_rows)
        self._edges: list[int] = own[_user_edges(own, count)].tolist()
        rows = self._log.train.part(self._edges[0], self._edges[-1])
        self.split = Split.of(config, index.categories >= 0, rows, processes)
        self.validates = self.split.validates(rows)
        self._kept: Examples | None = None
        counts = [self._count(*edge) for edge in pairwise(self._edges)]
        self._learnt = [int(each.shown.sum()) for each in counts]
        self.counts = joined_counts(counts)
        """What the users whose rows are learnt from did, in those rows."""
        self.steps = processes.lowest(
            sum(count_steps(config, each, self.step_rows) for each in counts)
        )
        """Of an epoch; it ends when the first process has none left."""

    @property
    def rows(self) -> int:
        """Impressions that are learnt from."""
        return sum(self._learnt)

    @property
    def step_rows(self) -> int:
        """Impressions of a step that this process contributes."""
        return max(1, self._config.optim.batch_size // self._processes.count)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield an epoch's steps from this one on.

        What step k holds depends on seed, epoch and k alone: an epoch that is gone on with in its
        middle is the one that was begun.
        """
        # A generator of its own for each epoch, process and shard.
        key = [self._config.seed, epoch]
        key += [self._processes.rank] if self._processes.count > 1 else []
        order = [0]
        if len(self._learnt) > 1:
            order = np.random.default_rng(key).permutation(len(self._learnt)).tolist()
        for shard in order:
            if not self._learnt[shard]:
                continue
            rng = np.random.default_rng([*key, shard] if len(order) > 1 else key)
            plan = plan_epoch(self._config, self._examples(shard), rng, self.step_rows)
            yield from plan.batches(first)
            first = max(0, first - len(plan))

    def digest(self) -> int:
        """Return a number that tells the log's impressions from others.

        Each process reads its own rows.
        """
        rows = self._log.train.part(self._edges[0], self._edges[-1])
        return self._summed(sum(part.digest() for part in pieces(rows)))

    def feature_digest(self) -> int:
        """Return a number that tells the features of the log's videos from others.

        By some thousand videos, each process by those of its own rows: features that were
        extracted anew differ everywhere, a single changed one may not show.
        """
        features, own = self._log.train_features, 0
        share = min(1.0, _VIDEOS_TOLD / len(features))
        rows = self._log.train.part(self._edges[0], self._edges[-1])
        for part in pieces(rows):
            # By their numbers, so that neither the order of rows nor who has them matters.
            mixed = part.item_ids.astype(np.uint32) * _MIXER
            told = part.item_ids[mixed <= share * np.iinfo(np.uint32).max]
            for item, count in zip(*np.unique(told, return_counts=True), strict=True):
                # One width, however the log came: an array in memory is the same log as its file.
                row = features[item : item + 1].astype("<f2")
                own += zlib.crc32(row.tobytes()) * int(count)
        return self._summed(own)

    def learns(self) -> Iterator[Impressions]:
        """Yield the rows that are learnt from, a shard at a time."""
        for begin, end in pairwise(self._edges):
            yield self.split.learns(self._log.train.part(begin, end))

    def videos(self) -> IntArray:
        """Return the videos that the first shard's users were shown, ascending, each once."""
        return np.unique(next(self.learns()).item_ids)

    def _summed(self, own: int) -> int:
        # In two halves: they are summed as float64.
        high, low = self._processes.sum(own >> 32, own & 0xFFFFFFFF)
        return (int(high) << 32) + int(low)

    def _examples(self, shard: int) -> Examples:
        if self._kept is not None and len(self._learnt) == 1:
            return self._kept
        # The last shard's memory is given back before the next one is read.
        self._kept = None
        rows = self.split.learns(self._log.train.part(self._edges[shard], self._edges[shard + 1]))
        self._kept = train_examples(self._config, self._log, rows)
        return self._kept

    def _count(self, begin: int, end: int) -> UserCounts:
        """Count the rows of a range that are learnt from."""

        def learnt() -> Iterator[tuple[IntArray, FloatArray]]:
            for part in pieces(self._log.train.part(begin, end)):
                learns = ~self.split.held[part.item_ids]
                yield part.user_ids[learns], part.labels[learns]

        return UserCounts.of(learnt())


def _user_edges(offsets: IntArray, parts: int) -> IntArray:
    """Cut users into ranges of about as many rows each: positions in ``offsets``, both ends too."""
    wanted = np.linspace(offsets[0], offsets[-1], max(1, parts) + 1)
    return np.unique(np.searchsorted(offsets, wanted))
