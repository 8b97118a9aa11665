"""The head's arithmetic: candidates of one user, or of several in one run, to probabilities.

Candidates are cut into tiles, whose rows stay in the cache of a core. A tile is scored as it would
be alone, whatever runs beside it.
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

TILE: Final = 64
"""Candidates in a tile."""

_TILES_PER_RUN: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Candidates of one user.

    Attributes:
        opened: the version that scores.
        profile: [K, P].
        table: of the row cache.
        slots: [N] where the candidates' rows are.
        new: videos whose rows are not in the cache.
    """

    opened: OpenVersion
    profile: FloatArray
    table: FloatArray
    slots: SlotArray
    new: Sequence[Video]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What became of a job.

    Attributes:
        probabilities: [N], NaN for a candidate whose row is nowhere.
        rows: [M, R], of the new videos.
        laps: ``rows``: encoding new videos and gathering rows; ``head``: the model's run.
    """

    probabilities: npt.NDArray[np.float64]
    rows: FloatArray
    laps: Sequence[Lap] = ()


def score(job: Job) -> Scored:
    """Score a job by itself, tile by tile."""
    start = time.perf_counter()
    known, rows, tiles = _tiles(job)
    gathered = ("rows", start, time.perf_counter())
    logits = [job.opened.model.logits(job.profile, tile) for tile in tiles]
    return _scored(job, known, rows, logits, gathered)


def score_merged(jobs: Sequence[Job]) -> list[Scored | Exception]:
    """Score jobs with as few runs of the head as there are kinds of tiles; what became of each.

    Where a run fails, its jobs are scored one by one: none suffers from a neighbour.
    """
    found: list[Scored | Exception | None] = [None] * len(jobs)
    logits: dict[int, list[FloatArray]] = {}
    prepared = {}
    kinds: dict[tuple[int, tuple[int, ...]], list[tuple[int, FloatArray]]] = defaultdict(list)
    for place, job in enumerate(jobs):
        start = time.perf_counter()
        try:
            known, rows, tiles = _tiles(job)
        except Exception as exc:  # noqa: BLE001  handed to whoever waits for this job
            found[place] = exc
            continue
        prepared[place] = known, rows, tiles, ("rows", start, time.perf_counter())
        logits[place] = []
        for tile in tiles:
            kinds[id(job.opened), job.profile.shape].append((place, tile))
    for kind in kinds.values():
        for start in range(0, len(kind), _TILES_PER_RUN):
            _run_tiles(jobs, kind[start : start + _TILES_PER_RUN], logits)
    for place, (known, rows, tiles, gathered) in prepared.items():
        done = logits[place]
        if len(done) == len(tiles):
            found[place] = _scored(jobs[place], known, rows, done, gathered)
    return [outcome or score_alone(job) for outcome, job in zip(found, jobs, strict=True)]


def score_alone(job: Job) -> Scored | Exception:
    """Score a job; its error is a result."""
    try:
        return score(job)
    except Exception as exc:  # noqa: BLE001  handed to whoever waits for this job
        return exc


def _run_tiles(
    jobs: Sequence[Job],
    tiles: Sequence[tuple[int, FloatArray]],
    logits: dict[int, list[FloatArray]],
) -> None:
    opened = jobs[tiles[0][0]].opened
    # Of few sizes, so that a device plans few of them: powers of two of full tiles.
    count = 1 << (len(tiles) - 1).bit_length()
    profile = jobs[tiles[0][0]].profile
    profiles = np.zeros((count, *profile.shape), np.float32)
    rows = np.zeros((count, TILE, tiles[0][1].shape[1]), np.float32)
    for index, (place, tile) in enumerate(tiles):
        profiles[index] = jobs[place].profile
        rows[index, : len(tile)] = tile
    try:
        found = opened.model.tile_logits(profiles, rows)
    except Exception:  # noqa: BLE001  its jobs have their own run, and their own error
        return
    for (place, tile), of_tile in zip(tiles, found, strict=False):
        logits[place].append(of_tile[: len(tile)])


def _tiles(job: Job) -> tuple[npt.NDArray[np.bool_], FloatArray, list[FloatArray]]:
    """Find which candidates have rows, the rows of new videos, and the tiles of candidates."""
    rows = encode(job.opened, job.new)
    known = job.slots != -1
    slots = job.slots if known.all() else job.slots[known]
    width = job.opened.manifest.layout.candidate_dim
    table, new = job.table[:, :width], rows[:, :width]
    starts = range(0, len(slots), TILE)
    return known, rows, [gather(table, new, slots[start : start + TILE]) for start in starts]


def _scored(
    job: Job,
    known: npt.NDArray[np.bool_],
    rows: FloatArray,
    logits: Sequence[FloatArray],
    gathered: Lap,
) -> Scored:
    probabilities = click_probabilities(np.concatenate(logits) if logits else np.zeros(0, "f4"))
    laps = (gathered, ("head", gathered[2], time.perf_counter()))
    if len(probabilities) == len(job.slots):
        return Scored(probabilities, rows, laps)
    scores = np.full(len(job.slots), np.nan)
    scores[known] = probabilities
    return Scored(scores, rows, laps)
