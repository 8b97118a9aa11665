"""The steps of a ranking that are loops over candidates: look ids up, copy rows, order, write.

They are written twice: in Python, which says what they do and runs everywhere, and in C++
(``_ranking.cpp``), which is built where there is a compiler when this is installed, and saves a
ranking a seventh of its CPU time. Both give the same, bit for bit; of what is written they give
the same once it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from model_store import FloatArray

LINE: Final = 8
"""Hashes in a line of a table of hashes, which is a line of the processor's cache."""
NEVER_EMPTY: Final = 1
"""Set in every hash that is kept: no place with one looks like a place without."""
UNUSED_BITS: Final = 1
"""Lowest bits of a hash that do not choose its line: they are the same in all that are kept."""

Hashes = npt.NDArray[np.int64]
"""[lines, LINE], lines a power of two; 0 where there is none."""
Numbers = npt.NDArray[np.int32]
"""[lines * LINE], one for each hash."""
Slots = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Ordered = tuple[Places, Scores, list[int]]
"""Places best first and cut, their scores, then the places without a score."""


@dataclass(frozen=True, slots=True)
class Steps:
    """One way of taking them.

    Attributes:
        find: keys [N], the table of hashes and the numbers in it, to the numbers of the keys [N],
            -1 for what is not there, and how many were there.
        gather: a table [any, R] and slots [N] to rows [N, R]; no slot may be beyond the table.
        order: scores [N], NaN for none, and how many at most, to their order, ties by place.
        write: keys, places among them, best first, and their scores, to JSON objects with commas
            in between: ``video_id``, ``index`` (the place), ``rank`` (from 1) and ``score``.
        many: from so many keys on ``find`` is faster than a dictionary.
    """

    find: Callable[[Sequence[str], Hashes, Numbers], tuple[Slots, int]]
    gather: Callable[[FloatArray, Slots], FloatArray]
    order: Callable[[Scores, int | None], Ordered]
    write: Callable[[Sequence[str], Places, Scores], bytes]
    many: int


def _find(keys: Sequence[str], hashes: Hashes, numbers: Numbers) -> tuple[Slots, int]:
    wanted = np.fromiter(map(hash, keys), np.int64, count=len(keys))
    lines = (wanted >> UNUSED_BITS) & (len(hashes) - 1)
    wanted |= NEVER_EMPTY
    hits = np.flatnonzero(hashes[lines] == wanted[:, None])
    if len(hits) == len(keys):
        return numbers[lines * LINE + hits % LINE].astype(np.int64), len(hits)
    found = np.full(len(keys), -1, np.int64)
    at = hits // LINE
    found[at] = numbers[lines[at] * LINE + hits % LINE]
    return found, len(hits)


def _gather(table: FloatArray, slots: Slots) -> FloatArray:
    # A row as one item: numpy copies it at once, in half the time of that many numbers.
    width = table.shape[1]
    items = table.view(np.dtype((np.void, table.itemsize * width)))[:, 0]
    return items[slots].view(table.dtype).reshape(len(slots), width)


def _order(scores: Scores, limit: int | None) -> Ordered:
    # NaN sorts last, and a stable sort keeps the order of the request.
    order = np.argsort(-scores, kind="stable")
    ranked = len(scores) - int(np.isnan(scores).sum())
    best = order[: ranked if limit is None else min(limit, ranked)]
    return best, scores[best], order[ranked:].tolist()


class _Row(msgspec.Struct, gc=False):
    video_id: str
    index: int
    rank: int
    score: float


_encode: Final = msgspec.json.Encoder().encode


def _write(keys: Sequence[str], places: Places, scores: Scores) -> bytes:
    listed = places.tolist()
    # Each argument a list of its own: no Python runs between one row and the next.
    chosen = [keys[place] for place in listed]
    rows = map(_Row, chosen, listed, range(1, len(listed) + 1), scores.tolist())
    return _encode([*rows])[1:-1]


IN_PYTHON: Final = Steps(_find, _gather, _order, _write, many=100)


def _built() -> Steps | str:
    """Return the compiled steps, or why there are none."""
    try:
        from service import _ranking  # noqa: PLC0415  only where it was built
    except ImportError as exc:
        return str(exc)
    # One that was built before this was updated lies where the new one would.
    if (found := getattr(_ranking, "INTERFACE", 1)) != _INTERFACE:
        return f"it was built for interface {found}, not {_INTERFACE}: install again"

    def find(keys: Sequence[str], hashes: Hashes, numbers: Numbers) -> tuple[Slots, int]:
        listed = keys if type(keys) is list else list(keys)
        slots = np.empty(len(listed), np.int64)
        return slots, _ranking.find(listed, hashes, numbers, slots)

    def gather(table: FloatArray, slots: Slots) -> FloatArray:
        rows = np.empty((len(slots), table.shape[1]), np.float32)
        _ranking.gather(table, slots, rows)
        return rows

    def order(scores: Scores, limit: int | None) -> Ordered:
        count = len(scores)
        places, ordered = np.empty(count, np.int64), np.empty(count)
        ranked = _ranking.order(scores, places, ordered)
        best = ranked if limit is None else min(limit, ranked)
        return places[:best], ordered[:best], places[ranked:].tolist() if ranked < count else []

    def write(keys: Sequence[str], places: Places, scores: Scores) -> bytes:
        return _ranking.write(keys if type(keys) is list else list(keys), places, scores)

    return Steps(find, gather, order, write, many=1)


_INTERFACE: Final = 2
"""Of the compiled steps; the number stands in ``_ranking.cpp``, too."""

_found = _built()
COMPILED: Final = None if isinstance(_found, str) else _found
"""Nothing where it was not built."""
WHY_NOT: Final = _found if isinstance(_found, str) else ""
"""Why it is not there; empty where it is."""
STEPS: Final = COMPILED or IN_PYTHON
"""The fastest way there is."""
