"""When and where the head runs: small jobs at once, others in threads, several users' together.

A job that surely takes less than handing it to a thread and back costs is done where it is. Any
other waits until a thread is free, which then takes all that wait, up to a limit. On a GPU a
thread waits a moment for more to come, and scores what it took in one run; on a CPU, where runs
cost nothing to start, the window is zero and jobs run one after another in the same thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from service import metrics
from service.admission import DeadlineError
from service.head import Job, Scored, score, score_alone, score_merged
from service.request_context import note_laps

_NEW_VIDEO_WEIGHT: Final = 4.0
"""What encoding a video costs, in candidates."""
_FIRST_GUESS: Final = 5e-6
"""Seconds per candidate, until the first ones were measured."""
_SMOOTHING: Final = 0.1
_LATE: Final = "the deadline passed before the work was begun"


@dataclass(frozen=True, slots=True)
class Batching:
    """How jobs are put together.

    Attributes:
        threads: runs at a time.
        inline_seconds: a job that takes less runs on the event loop.
        window_seconds: how long a run waits for more jobs; 0 on a CPU.
        merge: score the jobs of a run in one run of the model.
        max_rows: candidates in a run, unless a single job has more.
    """

    threads: int
    inline_seconds: float = 0.0
    window_seconds: float = 0.0
    merge: bool = False
    max_rows: int = 1_024


@dataclass(slots=True, eq=False)
class _Waiting:
    job: Job
    deadline: float
    future: asyncio.Future[Scored]


def _weight(job: Job) -> float:
    return len(job.slots) + _NEW_VIDEO_WEIGHT * len(job.new)


class HeadQueue:
    """Scores jobs. For one event loop.

    Args:
        executor: threads for runs.
        batching: how jobs are put together.
    """

    def __init__(self, executor: Executor, batching: Batching) -> None:
        self._executor = executor
        self._batching = batching
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._seconds_per_row = _FIRST_GUESS

    async def score(self, job: Job, deadline: float) -> Scored:
        """Score a job.

        Args:
            job: what to score.
            deadline: by ``time.monotonic()``; when it has passed the job is not begun.

        Raises:
            DeadlineError: it passed.
        """
        if self._is_small(_weight(job)):
            if deadline <= time.monotonic():
                raise DeadlineError(_LATE)
            return self.score_at_once(job)
        asked = time.perf_counter()
        waiting = _Waiting(job, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._start()
        scored = await waiting.future
        note_laps(asked, scored.laps)
        return scored

    def runs_at_once(self, count: int) -> bool:
        """Whether a job of so many known candidates runs where it is, rather than in a thread."""
        return self._is_small(count)

    def score_at_once(self, job: Job) -> Scored:
        """Score a job here and now."""
        asked, begin = time.perf_counter(), time.thread_time()
        scored = score(job)
        self._learn(_weight(job), time.thread_time() - begin)
        metrics.KEPT.observe(metrics.JOBS_PER_RUN, 1)
        note_laps(asked, scored.laps)
        return scored

    def _is_small(self, weight: float) -> bool:
        return weight * self._seconds_per_row <= self._batching.inline_seconds

    def _learn(self, weight: float, seconds: float) -> None:
        self._seconds_per_row += _SMOOTHING * (seconds / max(weight, 1.0) - self._seconds_per_row)

    def _start(self) -> None:
        batching = self._batching
        if not self._waiting or self._running >= batching.threads or self._timer is not None:
            return
        if (
            batching.window_seconds
            and sum(_weight(w.job) for w in self._waiting) < batching.max_rows
        ):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(batching.window_seconds, self._window_over)
            return
        self._launch()

    def _window_over(self) -> None:
        self._timer = None
        if self._waiting and self._running < self._batching.threads:
            self._launch()

    def _launch(self) -> None:
        taken = self._take()
        if not taken:
            return
        self._running += 1
        loop = asyncio.get_running_loop()
        jobs = [(waiting.job, waiting.deadline) for waiting in taken]
        run = loop.run_in_executor(self._executor, _run, jobs, self._batching.merge)
        run.add_done_callback(lambda done: self._deliver(taken, done))

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        rows = 0.0
        while self._waiting:
            waiting = self._waiting[0]
            # Whoever hung up, or was told that the time is up, waits no longer.
            if waiting.future.done():
                self._waiting.popleft()
                continue
            if taken and rows + _weight(waiting.job) > self._batching.max_rows:
                break
            rows += _weight(waiting.job)
            taken.append(self._waiting.popleft())
        return taken

    def _deliver(
        self,
        taken: Sequence[_Waiting],
        done: asyncio.Future[tuple[list[Scored | Exception], float]],
    ) -> None:
        self._running -= 1
        if done.cancelled() or done.exception() is not None:
            error = None if done.cancelled() else done.exception()
            outcomes: list[Scored | BaseException] = [error or asyncio.CancelledError()] * len(
                taken
            )
        else:
            found, seconds = done.result()
            outcomes = [*found]
            self._learn(sum(_weight(waiting.job) for waiting in taken), seconds)
            metrics.JOBS_PER_RUN.observe(len(taken))
        for waiting, outcome in zip(taken, outcomes, strict=True):
            if waiting.future.done():
                continue
            if isinstance(outcome, Scored):
                waiting.future.set_result(outcome)
            elif isinstance(outcome, asyncio.CancelledError):
                waiting.future.cancel()
            else:
                waiting.future.set_exception(outcome)
        self._start()


def _run(jobs: Sequence[tuple[Job, float]], merge: bool) -> tuple[list[Scored | Exception], float]:
    """Score jobs in this thread; also how long that kept it busy."""
    # Not by the clock: a thread would wait for a core no less than the loop does.
    begin, now = time.thread_time(), time.monotonic()
    late = DeadlineError(_LATE)
    alive = [job for job, deadline in jobs if deadline > now]
    # A single one is merged, too: a device sees the sizes of merged runs only.
    scored = iter(score_merged(alive) if merge else map(score_alone, alive))
    outcomes = [next(scored) if deadline > now else late for _, deadline in jobs]
    return outcomes, time.thread_time() - begin
