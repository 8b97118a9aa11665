"""Which of these videos will this user click?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from model_store import FloatArray, OpenVersion, click_probabilities
from service import metrics
from service.live_model import LiveModel
from service.profiles import Profile, Profiles
from service.rows import Resolved, encode, resolve
from service.state import Position, State, Video, View


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video to score: registered, or with its content given inline."""

    video_id: str
    video: Video | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an answer.

    Attributes:
        index: place of the candidate in the request.
        rank: 1 is best; ``None`` without a score.
        score: probability of a click.
        reason: why there is no score.
    """

    video_id: str
    index: int
    rank: int | None
    score: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates of one user, best first, and what the order was made from."""

    model_name: str
    model_version: str
    history: Position
    rows: list[Row]


class FeatureWidthError(Exception):
    """An inline candidate has features of another width than the model's.

    Args:
        index: place of the candidate.
        width: how many features it has.
        expected: how many the model takes.
    """

    def __init__(self, index: int, width: int, *, expected: int) -> None:
        super().__init__(f"{width} features given, the model takes {expected}")
        self.index = index


class Scoring:
    """Ranks candidates.

    Args:
        state: where users and videos are.
        live: the version that answers.
        profiles: users as the model sees them.
        executor: threads for model runs.
    """

    def __init__(
        self, state: State, live: LiveModel, *, profiles: Profiles, executor: Executor
    ) -> None:
        self._state = state
        self._live = live
        self._profiles = profiles
        self._executor = executor

    async def rank(
        self, user_id: str, candidates: Sequence[Candidate], *, top_k: int | None = None
    ) -> Ranking:
        """Rank candidates by the probability of a click, best first, ties by place.

        ``top_k`` cuts the ranked rows; candidates without a score always stand at the end.

        Raises:
            NoModelError: no version is open.
            FeatureWidthError: an inline candidate does not fit the model.
            StateDownError: Redis does not answer.
        """
        opened = self._live.current()
        _check_widths(candidates, opened.manifest.layout.feature_dim)
        metrics.CANDIDATES.inc(len(candidates))
        stored = [c.video_id for c in candidates if c.video is None]
        cache = self._profiles.rows(opened)
        with metrics.stage("state"):
            resolved = await resolve(cache, stored, partial(self._state.view, user_id))
        with metrics.stage("user"):
            profile = await self._profiles.profile(opened, user_id, resolved.read)
        loop = asyncio.get_running_loop()
        with metrics.stage("model"):
            scores, encoded = await loop.run_in_executor(
                self._executor, _score, opened, profile, candidates, resolved
            )
        cache.put(encoded, resolved.read.counters)
        return Ranking(
            model_name=opened.manifest.model_name,
            model_version=opened.manifest.version,
            history=profile.position,
            rows=_rank(candidates, scores, top_k),
        )


def _check_widths(candidates: Sequence[Candidate], expected: int) -> None:
    for index, candidate in enumerate(candidates):
        if candidate.video is not None and len(candidate.video.features) != expected:
            raise FeatureWidthError(index, len(candidate.video.features), expected=expected)


def _score(
    opened: OpenVersion,
    profile: Profile,
    candidates: Sequence[Candidate],
    resolved: Resolved[View],
) -> tuple[list[float | None], dict[str, FloatArray]]:
    """Score candidates: a probability each, ``None`` = unknown, NaN = no finite score."""
    inline = [c.video for c in candidates if c.video is not None]
    fresh = resolved.fresh
    # Both kinds in one run of the encoder.
    encoded = encode(opened, [*inline, *fresh.values()])
    by_id = dict(zip(fresh, encoded[len(inline) :], strict=True))
    stored, known = resolved.complete(by_id)
    given = np.array([c.video is not None for c in candidates], np.bool_)
    rows = np.empty((len(candidates), encoded.shape[1]), np.float32)
    rows[given], rows[~given] = encoded[: len(inline)], stored
    usable = given.copy()
    usable[~given] = known
    scores: list[float | None] = [None] * len(candidates)
    if usable.any():
        probabilities = click_probabilities(
            opened.model.logits(profile.array, rows[usable])
        ).tolist()
        for index, probability in zip(np.flatnonzero(usable).tolist(), probabilities, strict=True):
            scores[index] = probability
    return scores, by_id


def _rank(
    candidates: Sequence[Candidate], scores: Sequence[float | None], top_k: int | None
) -> list[Row]:
    ranked = [(score, i) for i, score in enumerate(scores) if score is not None and score == score]  # noqa: PLR0124  NaN
    ranked.sort(key=lambda pair: (-pair[0], pair[1]))
    rows = [
        Row(candidates[index].video_id, index, rank, score)
        for rank, (score, index) in enumerate(ranked[:top_k], start=1)
    ]
    placed = {index for _, index in ranked}
    for index, score in enumerate(scores):
        if index not in placed:
            reason = "unknown_video" if score is None else "score_not_finite"
            rows.append(Row(candidates[index].video_id, index, None, None, reason))
    return rows
