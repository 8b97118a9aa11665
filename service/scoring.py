"""Which of these videos will this user click?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from model_store import FloatArray, OpenVersion, click_probabilities
from service import metrics
from service.live_model import LiveModel
from service.profiles import Profile, Profiles
from service.rows import Resolved, encode, resolve
from service.state import Position, State, StateDownError, Video


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
class Degraded:
    """An answer that does not follow from all acknowledged clicks.

    Attributes:
        level: ``last_profile``: from a profile that this process remembers; ``no_history``: as
            for a new user.
        reason: what is wrong.
    """

    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates of one user, best first, and what the order was made from."""

    model_name: str
    model_version: str
    history: Position
    rows: list[Row]
    degraded: Degraded | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of a ranking.

    Attributes:
        top_k: cuts the ranked rows; candidates without a score always stand at the end.
        min_history_version: the answer must reflect a history at least as new.
        strict: rather no answer than a degraded one.
    """

    top_k: int | None = None
    min_history_version: int = 0
    strict: bool = False


_NO_WISHES: Final = Wishes()


class HistoryBehindError(Exception):
    """The history is older than the caller knows it to be.

    Args:
        version: where it stands.
        wanted: where the caller knows it to stand.
    """

    def __init__(self, version: int, *, wanted: int) -> None:
        super().__init__(
            f"history_version is {version}, at least {wanted} is asked for: try again, or, where "
            "the user has been deleted or has expired, drop the version"
        )
        self.version = version


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
        executor: for model runs.
        threads: of the executor.
    """

    def __init__(
        self,
        state: State,
        live: LiveModel,
        *,
        profiles: Profiles,
        executor: Executor,
        threads: int,
    ) -> None:
        self._state = state
        self._live = live
        self._profiles = profiles
        self._executor = executor
        self._threads = threads
        self._running = 0

    @property
    def busy(self) -> bool:
        """Whether there are more rankings than threads to run them."""
        return self._running >= self._threads

    async def rank(
        self, user_id: str, candidates: Sequence[Candidate], wishes: Wishes = _NO_WISHES
    ) -> Ranking:
        """Rank candidates by the probability of a click, best first, ties by place.

        With Redis gone the ranking is degraded, in declared steps.

        Raises:
            NoModelError: no version is open.
            FeatureWidthError: an inline candidate does not fit the model.
            HistoryBehindError: the history is older than is asked for.
            StateDownError: Redis does not answer, and only a true answer is wanted.
        """
        opened = self._live.current()
        _check_widths(candidates, opened.manifest.layout.feature_dim)
        metrics.CANDIDATES.inc(len(candidates))
        self._running += 1
        try:
            return await self._rank(opened, user_id, candidates, wishes)
        finally:
            self._running -= 1

    async def _rank(
        self, opened: OpenVersion, user_id: str, candidates: Sequence[Candidate], wishes: Wishes
    ) -> Ranking:
        cache = self._profiles.rows(opened)
        stored = [c.video_id for c in candidates if c.video is None]
        degraded: Degraded | None = None
        resolved: Resolved[Any]
        try:
            with metrics.stage("state"):
                resolved = await resolve(cache, stored, partial(self._state.view, user_id))
            with metrics.stage("user"):
                profile = await self._profiles.profile(opened, user_id, resolved.read)
        except StateDownError as exc:
            if wishes.strict:
                raise
            profile, degraded = await self._without_state(opened, user_id, str(exc))
            resolved = await resolve(cache, stored, _no_videos)
        if profile.position.version < wishes.min_history_version:
            raise HistoryBehindError(profile.position.version, wanted=wishes.min_history_version)
        loop = asyncio.get_running_loop()
        with metrics.stage("model"):
            scores, encoded = await loop.run_in_executor(
                self._executor, _score, opened, profile, candidates, resolved
            )
        cache.put(encoded, generation=resolved.generation)
        return Ranking(
            model_name=opened.manifest.model_name,
            model_version=opened.manifest.version,
            history=profile.position,
            rows=_rank(candidates, scores, wishes.top_k, unknown=_unknown(degraded)),
            degraded=degraded,
        )

    async def _without_state(
        self, opened: OpenVersion, user_id: str, reason: str
    ) -> tuple[Profile, Degraded]:
        profile, level = self._profiles.last(opened, user_id), "last_profile"
        if profile is None:
            level = "no_history"
            profile = Profile(await self._profiles.empty(opened), Position(0, 0))
        metrics.DEGRADED.labels(level).inc()
        return profile, Degraded(level, reason)


@dataclass(frozen=True, slots=True)
class _NoVideos:
    videos: list[Video | None]


async def _no_videos(video_ids: Sequence[str]) -> _NoVideos:
    return _NoVideos([None] * len(video_ids))


def _unknown(degraded: Degraded | None) -> str:
    # With Redis gone nobody knows whether a video is registered.
    return "unknown_video" if degraded is None else "state_down"


def _check_widths(candidates: Sequence[Candidate], expected: int) -> None:
    for index, candidate in enumerate(candidates):
        if candidate.video is not None and len(candidate.video.features) != expected:
            raise FeatureWidthError(index, len(candidate.video.features), expected=expected)


def _score(
    opened: OpenVersion,
    profile: Profile,
    candidates: Sequence[Candidate],
    resolved: Resolved[Any],
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
    candidates: Sequence[Candidate],
    scores: Sequence[float | None],
    top_k: int | None,
    *,
    unknown: str,
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
            reason = unknown if score is None else "score_not_finite"
            rows.append(Row(candidates[index].video_id, index, None, None, reason))
    return rows
