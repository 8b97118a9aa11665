"""What a click is, which clicks a model may see, and how they become blocks.

This is the one definition of history for both halves. The service's Redis script and
the trainer's vectorised gather are held to :func:`visible_history` by tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Click:
    """One click of one user.

    Attributes:
        clicked_at_ms: event time, milliseconds since the Unix epoch.
        video_id: the clicked video.
    """

    clicked_at_ms: int
    video_id: str

    def order(self) -> tuple[int, bytes]:
        """Sort key of histories: event time, ties by the id's UTF-8 bytes."""
        return self.clicked_at_ms, self.video_id.encode()


def visible_history(
    clicks: Iterable[Click], *, before_ms: int | None = None, length: int = 160
) -> list[Click]:
    """Return the history that a model may see, oldest click first.

    The newest ``length`` distinct clicks strictly before ``before_ms``; clicks with the same
    video and time collapse; ties in time are ordered by video id. Deterministic.

    Args:
        clicks: any order, duplicates allowed.
        before_ms: clicks at or after this moment are invisible; ``None`` sees all.
        length: how many clicks at most, at least 0.

    Raises:
        ValueError: ``length`` is negative.
    """
    if length < 0:
        raise ValueError(f"history length is {length}, it must be at least 0")
    seen = {c for c in clicks if before_ms is None or c.clicked_at_ms < before_ms}
    ordered = sorted(seen, key=Click.order)
    return ordered[max(0, len(ordered) - length) :]


def blocks_of(rows: FloatArray, block_size: int, blocks: int) -> FloatArray:
    """Cut one user's rows into blocks, oldest first, the last one padded with zeros at its end.

    Args:
        rows: [n, R], oldest first, n at most ``blocks`` x ``block_size``.
        block_size: S, clicks per block.
        blocks: K.

    Returns:
        [K, S, R].

    Raises:
        ValueError: more rows than there is room for.
    """
    count, width = rows.shape
    if count > blocks * block_size:
        raise ValueError(
            f"{count} clicks given, {blocks} blocks of {block_size} hold {blocks * block_size}: "
            "cut with visible_history first"
        )
    padded = np.zeros((blocks * block_size, width), np.float32)
    padded[:count] = rows
    return padded.reshape(blocks, block_size, width)
