"""The profile's arithmetic: histories of several users to profiles, in one run of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model_store import FloatArray, OpenVersion, blocks_of
from service.packed_profile import rounded
from service.rows import encode, gather
from service.state import Video


def run_profiles(
    opened: OpenVersion,
    table: FloatArray,
    new: Sequence[Video],
    clicked: Iterable[Sequence[int]],
) -> tuple[list[FloatArray], FloatArray]:
    """Profile users [K, P] each, by the slots of their clicks; and the rows of what is new."""
    rows = encode(opened, new)
    length = opened.manifest.layout.history_length
    seen = [np.array([slot for slot in slots if slot != -1][-length:], int) for slots in clicked]
    if not seen:
        return [], rows
    layout = opened.manifest.layout
    filled = [layout.filled_blocks(len(slots)) for slots in seen]
    histories = np.stack(
        [blocks_of(gather(table, rows, slots), layout.block_size, max(filled)) for slots in seen]
    )
    lengths = np.array([len(slots) for slots in seen], np.int64)
    arrays = rounded(opened.model.profiles(histories, lengths))
    return [array[:blocks] for array, blocks in zip(arrays, filled, strict=True)], rows
