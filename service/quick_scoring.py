"""The usual ranking in two calls: one when its request is read, one when Redis has answered.

It is the one whose candidates' rows and whose user's profile are in memory and whose head is small
enough to run at once. Redis is asked whether the profile still holds, and the head runs meanwhile. Where
anything is unusual, :class:`~service.scoring.Scoring` ranks: no case is decided in two places.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from model_store import OpenVersion
from service import metrics
from service.admission import DeadlineError, OverloadedError
from service.head import Job, Scored
from service.last_profiles import Profile
from service.live_model import NoModelError
from service.looking import Looking
from service.rows import count_hits
from service.scoring import (
    Means,
    Ranking,
    Wishes,
    Work,
    arranged,
    late,
    seconds_of,
)

Done = Callable[[Ranking | DeadlineError | None], None]
"""Called once: with the ranking, with why there is none in time, or with nothing where
:class:`~service.scoring.Scoring` is to rank."""

_log: Final = logging.getLogger(__name__)


class QuickScoring:
    """Ranks registered candidates where that takes no more than two calls. For one event loop."""

    def __init__(self, means: Means) -> None:
        self._means = means

    def begin(self, user_id: str, video_ids: Sequence[str], wishes: Wishes, done: Done) -> bool:
        """Ask Redis for the user, and score with the profile in memory meanwhile.

        Args:
            user_id: the user.
            video_ids: the candidates, all registered.
            wishes: what the caller asks for.
            done: called in a later turn of the loop.

        Returns:
            Whether it was begun; if not, nothing is held, and ``done`` is not called.
        """
        means = self._means
        found = self._found(user_id, video_ids)
        if found is None:
            return False
        try:
            # As many as are let in are begun: they take no turn, and hold up nobody who waits for one.
            weight = means.admission.enter(len(video_ids))
        except OverloadedError:
            return False
        begun = False
        try:
            begun = self._begun(user_id, *found, wishes, done, weight)
        finally:
            if not begun:
                means.admission.leave(weight)
        return begun

    def _begun(
        self, user_id: str, guess: Profile, job: Job, wishes: Wishes, done: Done, weight: int
    ) -> bool:
        start = time.perf_counter()
        # Whether the guess holds, the history's version says: four kilobytes less to read.
        looking = self._means.profiles.look(user_id, guess, stored=False)
        question = looking.look.question
        scored = self._scored(job) if question.is_sent else None
        if scored is None:
            question.drop()
            return False
        ran = time.perf_counter()
        metrics.note_stage("model", start, ran)
        work = Work(guess, job.slots, scored)
        under_way = _UnderWay(user_id, job.opened, work, looking, weight, wishes, done)
        seconds = seconds_of(wishes, self._means.timeout_seconds)
        left = start + seconds - ran
        loop = asyncio.get_running_loop()
        under_way.timer = loop.call_later(left, self._expire, under_way, seconds)
        question.when_answered(partial(self._told, under_way, ran))
        return True

    def _scored(self, job: Job) -> Scored | None:
        try:
            return self._means.head.score_at_once(job)
        except Exception:  # noqa: BLE001  who ranks instead meets the same error, and tells of it
            return None

    def _found(self, user_id: str, video_ids: Sequence[str]) -> tuple[Profile, Job] | None:
        """Return what is to be scored, if all of it is in memory and it pays to score it now."""
        profiles, luck = self._means.profiles, self._means.luck
        if not (self._means.head.runs_at_once(len(video_ids)) and profiles.asks_at_once):
            return None
        try:
            opened = self._means.live.current()
        except NoModelError:
            return None
        # Where they are not, whoever ranks in the usual way tries one now and then.
        guess = profiles.last.guess(opened, user_id) if luck.is_good else None
        if guess is None:
            return None
        cache = profiles.rows(opened)
        slots = cache.look_all_up(video_ids)
        if slots is None:
            return None
        return guess, Job(opened, guess.array, cache.table, slots, (), complete=True)

    def _told(self, under_way: _UnderWay, ran: float, _: object) -> None:
        if under_way.is_over:
            return
        ranking = None
        try:
            ranking = self._ranking(under_way, ran)
        except Exception:  # noqa: BLE001  nobody else would hear of it, and the caller would wait
            _log.exception("a ranking begun at once failed, and is made as others are")
        self._end(under_way, ranking)

    def _ranking(self, under_way: _UnderWay, ran: float) -> Ranking | None:
        opened, work, profiles = under_way.opened, under_way.work, self._means.profiles
        answered = time.perf_counter()
        metrics.note_stage("state", ran, answered, "redis")
        view = profiles.seen_now(under_way.looking)
        if view is None or view.position.version < under_way.wishes.min_history_version:
            return None
        right = profiles.holds(opened, work.profile, view)
        metrics.note_stage("user", answered, time.perf_counter(), "profile")
        self._means.luck.note(right=right)
        if not right:
            # Whoever ranks now need not try it again.
            profiles.last.moved((under_way.user_id,))
            return None
        ranking = arranged(opened, work, under_way.wishes)
        count_hits(len(work.slots))
        metrics.KEPT.count(metrics.CANDIDATES, len(work.slots))
        return ranking

    def _expire(self, under_way: _UnderWay, seconds: float) -> None:
        metrics.CANDIDATES.inc(len(under_way.work.slots))
        metrics.EXPIRED.inc()
        self._end(under_way, late(seconds))

    def _end(self, under_way: _UnderWay, outcome: Ranking | DeadlineError | None) -> None:
        under_way.is_over = True
        if under_way.timer is not None:
            under_way.timer.cancel()
        under_way.looking.look.question.drop()
        self._means.admission.leave(under_way.weight)
        under_way.done(outcome)


@dataclass(slots=True, eq=False)
class _UnderWay:
    """A ranking that waits for Redis."""

    user_id: str
    opened: OpenVersion
    work: Work
    looking: Looking
    weight: int
    wishes: Wishes
    done: Done
    timer: asyncio.TimerHandle | None = None
    is_over: bool = False
