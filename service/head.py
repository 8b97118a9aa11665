"""The head's arithmetic: candidates of one user, or of several in one run, to probabilities.

Candidates are cut into tiles, whose intermediate results stay in the caches of a core. A tile is
scored as it would be alone, whatever runs beside it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, OpenVersion, click_probabilities
from service.request_context import Lap
from service.rows import SlotArray, encode, gather
from service.state import Video
from service.steps import STEPS

TILE: Final = 256
"""Candidates in a tile at most."""

_OF_MANY: Final = 128
"""Where it takes several tiles anyway: what lies between two products of one stays in a core's
second cache, 4 % faster for 1,000 candidates."""
_WIDTHS: Final = (32, 64, 128, TILE)
_TILES_PER_RUN: Final = 64
_NO_ROWS: Final[FloatArray] = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Candidates of one user.

    Attributes:
        opened: the version that scores.
        profile: [K, P].
        table: of the row cache.
        slots: [N] where the candidates' rows are.
        new: videos whose rows are not in the cache.
        complete: whether all candidates are known to be in the cache. To look again would cost
            a ranking of 200 candidates 2 to 3 % of its time.
    """

    opened: OpenVersion
    profile: FloatArray
    table: FloatArray
    slots: SlotArray
    new: Sequence[Video]
    complete: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What became of a job.

    Attributes:
        probabilities: [N], NaN for a candidate whose row is nowhere.
        rows: [M, R], of the new videos.
        laps: ``rows``: encoding new videos and gathering rows, unless the compiled head gathers them
            itself; ``head``: the model's run.
    """

    probabilities: npt.NDArray[np.float64]
    rows: FloatArray
    laps: Sequence[Lap] = ()


def tiles_of(count: int) -> list[slice]:
    """Cut so many candidates into tiles, as even as can be."""
    tiles = 1 if count <= TILE else -(-count // _OF_MANY)
    return [slice(count * i // tiles, count * (i + 1) // tiles) for i in range(tiles) if count]


def score(job: Job) -> Scored:
    """Score a job by itself, tile by tile."""
    start = time.perf_counter()
    compiled = job.opened.model.compiled_head
    if compiled is not None and job.complete:
        # It takes rows from where they are, and knows no tiles.
        logits = compiled.logits(job.profile, job.table, job.slots)
        probabilities = click_probabilities(logits)
        return Scored(probabilities, _NO_ROWS, [("head", start, time.perf_counter())])
    known, rows, tiles = _tiles(job)
    gathered = ("rows", start, time.perf_counter())
    return _scored(job, known, rows, [_logits(job, tile) for tile in tiles], gathered)


def score_merged(jobs: Sequence[Job]) -> list[Scored | Exception]:
    """Score jobs with as few runs of the head as there are kinds of tiles; what became of each.

    Of one kind are tiles for the same version, of profiles with as many blocks, and of about
    as many candidates.

    Where a run fails, its jobs are scored one by one: none suffers from a neighbour.
    """
    found: list[Scored | Exception | None] = [None] * len(jobs)
    logits: dict[int, list[FloatArray | None]] = {}
    prepared = {}
    kinds: dict[tuple[int, tuple[int, ...], int], list[_Tile]] = defaultdict(list)
    for place, job in enumerate(jobs):
        start = time.perf_counter()
        try:
            known, rows, tiles = _tiles(job)
        except Exception as exc:  # noqa: BLE001  handed to whoever waits for this job
            found[place] = exc
            continue
        prepared[place] = known, rows, ("rows", start, time.perf_counter())
        logits[place] = [None] * len(tiles)
        for number, tile in enumerate(tiles):
            width = next(width for width in _WIDTHS if len(tile) <= width)
            kinds[id(job.opened), job.profile.shape, width].append(_Tile(place, number, tile))
    for (_, _, width), kind in kinds.items():
        for begin in range(0, len(kind), _TILES_PER_RUN):
            _run_tiles(jobs, kind[begin : begin + _TILES_PER_RUN], width, logits)
    for place, (known, rows, gathered) in prepared.items():
        done = [part for part in logits[place] if part is not None]
        if len(done) == len(logits[place]):
            found[place] = _scored(jobs[place], known, rows, done, gathered)
    return [outcome or score_alone(job) for outcome, job in zip(found, jobs, strict=True)]


def score_alone(job: Job) -> Scored | Exception:
    """Score a job; its error is a result."""
    try:
        return score(job)
    except Exception as exc:  # noqa: BLE001  handed to whoever waits for this job
        return exc


def _logits(job: Job, tile: FloatArray) -> FloatArray:
    if len(tile) > 1:
        return job.opened.model.logits(job.profile, tile)
    # A product with a single column is summed in another order than one with several.
    return job.opened.model.logits(job.profile, np.repeat(tile, 2, axis=0))[:1]


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Some candidates of one job: whose, which of its tiles, their rows [M, C]."""

    place: int
    number: int
    rows: FloatArray


def _run_tiles(
    jobs: Sequence[Job],
    tiles: Sequence[_Tile],
    width: int,
    logits: dict[int, list[FloatArray | None]],
) -> None:
    first = jobs[tiles[0].place]
    # Of few sizes, so that a device plans few of them: powers of two of tiles, a few widths.
    count = 1 << (len(tiles) - 1).bit_length()
    profiles = np.zeros((count, *first.profile.shape), np.float32)
    rows = np.zeros((count, width, tiles[0].rows.shape[1]), np.float32)
    for index, tile in enumerate(tiles):
        profiles[index] = jobs[tile.place].profile
        rows[index, : len(tile.rows)] = tile.rows
    try:
        found = first.opened.model.tile_logits(profiles, rows)
    except Exception:  # noqa: BLE001  its jobs have their own run, and their own error
        return
    for tile, of_tile in zip(tiles, found, strict=False):
        logits[tile.place][tile.number] = of_tile[: len(tile.rows)]


_Known = npt.NDArray[np.bool_] | None
"""[N] which candidates have rows; nothing where all have."""


def _tiles(job: Job) -> tuple[_Known, FloatArray, list[FloatArray]]:
    """Find which candidates have rows, the rows of new videos, and the tiles of candidates."""
    rows = encode(job.opened, job.new)
    width = job.opened.manifest.layout.candidate_dim
    table, new = job.table[:, :width], rows[:, :width]
    if job.complete:
        return None, rows, [STEPS.gather(table, job.slots[t]) for t in tiles_of(len(job.slots))]
    known = job.slots != -1
    slots = job.slots[known]
    return known, rows, [gather(table, new, slots[t]) for t in tiles_of(len(slots))]


def _scored(
    job: Job,
    known: _Known,
    rows: FloatArray,
    logits: Sequence[FloatArray],
    gathered: Lap,
) -> Scored:
    if len(logits) != 1:
        logits = [np.concatenate([np.zeros(0, np.float32), *logits])]
    probabilities = click_probabilities(logits[0])
    laps = (gathered, ("head", gathered[2], time.perf_counter()))
    if known is None:
        return Scored(probabilities, rows, laps)
    scores = np.full(len(job.slots), np.nan)
    scores[known] = probabilities
    return Scored(scores, rows, laps)
