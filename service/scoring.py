"""Which of these videos will this user click?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from model_store import OpenVersion
from service import metrics
from service.admission import Admission, DeadlineError
from service.head import Job, Scored
from service.head_queue import HeadQueue
from service.last_profiles import Profile
from service.live_model import LiveModel
from service.luck import Luck
from service.profiles import Profiles
from service.request_context import timed
from service.rows import Resolved, RowCache, SlotArray, count_hits, resolve
from service.state import Position, StateDownError, Video
from service.steps import STEPS, Places, Scores


@dataclass(frozen=True, slots=True)
class Candidates:
    """Videos to score: registered, or with their content given inline by place."""

    video_ids: Sequence[str]
    inline: Mapping[int, Video] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.video_ids)


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


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Candidates of one user, best first, and what the order was made from.

    Attributes:
        model_name: of the model that answered.
        model_version: of the model that answered.
        history: that the answer reflects.
        places: [M], of the candidates in the request, best first, cut by ``top_k``.
        scores: [M], probabilities of a click, of ``places``.
        unranked: places of candidates without a score, and why.
        degraded: why this does not follow from all acknowledged clicks, if so.
    """

    model_name: str
    model_version: str
    history: Position
    places: Places
    scores: Scores
    unranked: list[tuple[int, str]]
    degraded: Degraded | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of a ranking.

    Attributes:
        top_k: cuts the ranked rows; candidates without a score always stand at the end.
        min_history_version: the answer must reflect a history at least as new.
        timeout_seconds: how long the caller waits; ``None`` for the service's default.
        waited_seconds: how much of that has passed.
        strict: rather no answer than a degraded one.
    """

    top_k: int | None = None
    min_history_version: int = 0
    timeout_seconds: float | None = None
    strict: bool = False
    waited_seconds: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Means:
    """What rankings are made with, whichever way.

    Attributes:
        live: the version that answers.
        profiles: users as the model sees them.
        head: scores candidates.
        admission: who may wait for it.
        timeout_seconds: for how long, unless the caller says less.
        turns: rankings begun at a time; others that were admitted wait for theirs.
        luck: whether guesses pay.
    """

    live: LiveModel
    profiles: Profiles
    head: HeadQueue
    admission: Admission
    timeout_seconds: float
    turns: asyncio.Semaphore
    luck: Luck


class Scoring:
    """Ranks candidates."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def rank(
        self, user_id: str, candidates: Candidates, wishes: Wishes = _NO_WISHES
    ) -> Ranking:
        """Rank candidates by the probability of a click, best first, ties by place.

        With Redis gone the ranking is degraded, in declared steps.

        Raises:
            NoModelError: no version is open.
            FeatureWidthError: an inline candidate does not fit the model.
            OverloadedError: too many candidates are being ranked already.
            DeadlineError: the caller's time is up.
            HistoryBehindError: the history is older than is asked for.
            StateDownError: Redis does not answer, and only a true answer is wanted, or one that is
                newer than what is remembered.
        """
        opened = self._means.live.current()
        _check_widths(candidates, opened.manifest.layout.feature_dim)
        limit = seconds_of(wishes, self._means.timeout_seconds)
        seconds = max(0.0, limit - wishes.waited_seconds)
        with self._means.admission.admitted(len(candidates)):
            metrics.CANDIDATES.inc(len(candidates))
            deadline = time.monotonic() + seconds
            try:
                # In turns: were all begun together, each would find its data gone from the caches,
                # and nothing new would be read, let alone refused, before all of them are done.
                async with asyncio.timeout(seconds), self._means.turns:
                    return await self._rank(opened, user_id, candidates, wishes, deadline)
            except (TimeoutError, DeadlineError):
                metrics.EXPIRED.inc()
                raise late(limit) from None

    async def _rank(
        self,
        opened: OpenVersion,
        user_id: str,
        candidates: Candidates,
        wishes: Wishes,
        deadline: float,
    ) -> Ranking:
        cache = self._means.profiles.rows(opened)
        degraded: Degraded | None = None
        with cache.pinned():
            try:
                work = await self._guessed(opened, user_id, candidates, cache, deadline)
                if work is None:
                    work = await self._asked(opened, user_id, candidates, cache, deadline)
            except StateDownError as exc:
                if wishes.strict:
                    raise
                work, degraded = await self._without_state(
                    opened, user_id, candidates, deadline, str(exc)
                )
        return arranged(opened, work, wishes, degraded)

    async def _guessed(
        self,
        opened: OpenVersion,
        user_id: str,
        candidates: Candidates,
        cache: RowCache,
        deadline: float,
    ) -> Work | None:
        """Score with the profile in memory while Redis is asked whether it still holds.

        Returns:
            None where there is no good guess, or where it was wrong.
        """
        guess = (
            self._means.profiles.last.guess(opened, user_id)
            if self._means.luck.worth_trying()
            else None
        )
        if guess is None or candidates.inline:
            return None
        slots = cache.look_all_up(candidates.video_ids)
        if slots is None:
            return None
        looking = self._means.profiles.look(user_id, guess)
        question = looking.look.question
        # With the circuit open nobody is asked, and the run would be for nothing.
        if question.begun is None:
            return None
        try:
            if not question.is_sent:
                await asyncio.sleep(0)
            with metrics.stage("model"):
                job = Job(opened, guess.array, cache.table, slots, (), complete=True)
                scored = await self._means.head.score(job, deadline)
            # Only what is waited for beyond the run.
            with metrics.stage("state", "redis"):
                view = await self._means.profiles.seen(looking)
        finally:
            question.drop()
        with metrics.stage("user", "profile"):
            profile = await self._means.profiles.profile(opened, user_id, view)
        right = profile.array is guess.array
        self._means.luck.note(right=right)
        if not right:
            job = Job(opened, profile.array, cache.table, slots, (), complete=True)
            with metrics.stage("model"):
                scored = await self._means.head.score(job, deadline)
        count_hits(len(slots))
        return Work(profile, slots, scored)

    async def _asked(
        self,
        opened: OpenVersion,
        user_id: str,
        candidates: Candidates,
        cache: RowCache,
        deadline: float,
    ) -> Work:
        """Ask Redis for the user and for videos that are not in memory, then score."""
        inline = candidates.inline
        stored: Sequence[str] = candidates.video_ids
        if inline:
            stored = [v for place, v in enumerate(stored) if place not in inline]
        read = partial(timed, "redis", partial(self._means.profiles.view, opened, user_id))
        with metrics.stage("state"):
            resolved = await resolve(cache, stored, read)
        with metrics.stage("user", "profile"):
            profile = await self._means.profiles.profile(opened, user_id, resolved.read)
        return await self._scored(opened, profile, candidates, resolved, cache, deadline)

    async def _scored(
        self,
        opened: OpenVersion,
        profile: Profile,
        candidates: Candidates,
        resolved: Resolved[Any],
        cache: RowCache,
        deadline: float,
    ) -> Work:
        inline = candidates.inline
        slots = _with_inline(resolved, inline, len(candidates)) if inline else resolved.slots
        new = [*resolved.fresh.values(), *inline.values()]
        with metrics.stage("model"):
            job = Job(opened, profile.array, cache.table, slots, new)
            scored = await self._means.head.score(job, deadline)
        if resolved.fresh:
            encoded = dict(zip(resolved.fresh, scored.rows, strict=False))
            cache.put(encoded, generation=resolved.generation)
        return Work(profile, slots, scored)

    async def _without_state(
        self,
        opened: OpenVersion,
        user_id: str,
        candidates: Candidates,
        deadline: float,
        reason: str,
    ) -> tuple[Work, Degraded]:
        profile, level = self._means.profiles.last.last(opened, user_id), "last_profile"
        if profile is None:
            level = "no_history"
            profile = Profile(await self._means.profiles.empty(opened), Position(0, 0))
        cache, inline = self._means.profiles.rows(opened), candidates.inline
        stored = [v for place, v in enumerate(candidates.video_ids) if place not in inline]
        resolved = await resolve(cache, stored, _no_videos)
        work = await self._scored(opened, profile, candidates, resolved, cache, deadline)
        return work, Degraded(level, reason)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Candidates scored: the profile they were scored for, their slots, their scores."""

    profile: Profile
    slots: SlotArray
    scored: Scored


def arranged(
    opened: OpenVersion, work: Work, wishes: Wishes, degraded: Degraded | None = None
) -> Ranking:
    """Put what was scored in order, if the history that it follows from is new enough.

    Raises:
        HistoryBehindError: it is older than is asked for.
        StateDownError: so is what is remembered, and Redis does not answer.
    """
    position = work.profile.position
    if position.version < wishes.min_history_version:
        if degraded is not None:
            raise StateDownError(f"what is remembered is too old: {degraded.reason}")
        raise HistoryBehindError(position.version, wanted=wishes.min_history_version)
    if degraded is None:
        metrics.show_score(work.scored.probabilities)
    else:
        metrics.DEGRADED.labels(degraded.level).inc()
    places, ordered, unranked = STEPS.order(work.scored.probabilities, wishes.top_k)
    # With Redis gone nobody knows whether a video is registered.
    unknown = "unknown_video" if degraded is None else "state_down"
    return Ranking(
        model_name=opened.manifest.model_name,
        model_version=opened.manifest.version,
        history=position,
        places=places,
        scores=ordered,
        unranked=[(p, unknown if work.slots[p] == -1 else "score_not_finite") for p in unranked],
        degraded=degraded,
    )


def seconds_of(wishes: Wishes, most: float) -> float:
    """Return how long the caller waits, at most so long."""
    return most if wishes.timeout_seconds is None else min(wishes.timeout_seconds, most)


def late(seconds: float) -> DeadlineError:
    """Return the error of an answer that was not ready in time."""
    return DeadlineError(f"the answer was not ready within {seconds * 1e3:.0f} ms")


@dataclass(frozen=True, slots=True)
class _NoVideos:
    videos: list[Video | None]


async def _no_videos(video_ids: Sequence[str]) -> _NoVideos:
    return _NoVideos([None] * len(video_ids))


def _check_widths(candidates: Candidates, expected: int) -> None:
    for place, video in candidates.inline.items():
        if len(video.features) != expected:
            raise FeatureWidthError(place, len(video.features), expected=expected)


def _with_inline(resolved: Resolved[Any], inline: Mapping[int, Video], count: int) -> SlotArray:
    """Put the places of inline candidates, behind the fresh ones, between those of stored ones."""
    slots = np.empty(count, np.int64)
    given = np.zeros(count, np.bool_)
    given[list(inline)] = True
    slots[~given] = resolved.slots
    # In the order of the places, as the contents are.
    slots[list(inline)] = -2 - len(resolved.fresh) - np.arange(len(inline))
    return slots
