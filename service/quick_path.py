"""``POST /score`` without a task: judged when it is read, answered when Redis is heard of.

A task of its own, the framework's messages and a turn of the loop for each step are a seventh of what
a ranking of 200 candidates costs. Where anything is unusual the request is served as any other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI
from starlette.types import Scope

from service.admission import DeadlineError
from service.answers import Written
from service.api import ASKED, BEGUN_AT, wishes_of, write_ranking
from service.parts import Parts
from service.problems import MEDIA_TYPE, write_problem
from service.refusals import problem_of
from service.score_body import ScoreRequest, is_compact, parse_common
from service.scoring import Ranking

Answer = tuple[int, Written]
"""Status and body."""
Done = Callable[[Answer | None], None]
"""Called once with an answer, or with nothing where the app is to serve the request after all."""

_PATH: Final = "/score"
_log: Final = logging.getLogger(__name__)


class QuickPath:
    """Answers rankings that :class:`~service.quick_scoring.QuickScoring` can make.

    Args:
        app: has the parts in its state.
    """

    def __init__(self, app: FastAPI) -> None:
        self._state = app.state

    def takes(self, scope: Scope) -> bool:
        """Whether a request, of which the head is known, may be one to begin when it is whole."""
        return bool(scope["path"] == _PATH and scope["method"] == "POST")

    def begin(self, scope: Scope, raw: bytes, done: Done) -> bool:
        """Begin to answer a request whose body is whole.

        Returns:
            Whether it was begun; if not, ``done`` is not called.
        """
        parts: Parts = self._state.parts
        start = time.perf_counter()
        compact = is_compact(scope)
        asked = parse_common(raw, compact=compact)
        if asked is None or len(asked.video_ids) > parts.settings.max_candidates:
            return False
        # Whoever ranks instead need not read it again.
        scope[ASKED] = asked

        def ranked(outcome: Ranking | DeadlineError | None) -> None:
            answer = None
            try:
                answer = _answer(scope, asked, outcome, compact=compact, start=start)
            except Exception:  # noqa: BLE001  nobody else would hear of it, and the caller would wait
                _log.exception("an answer could not be written at once")
            if answer is None:
                scope[BEGUN_AT] = start
            done(answer)

        wishes = wishes_of(asked, parts.settings)
        return parts.quick_scoring.begin(asked.user_id, asked.video_ids, wishes, ranked)


def _answer(
    scope: Scope,
    asked: ScoreRequest,
    outcome: Ranking | DeadlineError | None,
    *,
    compact: bool,
    start: float,
) -> Answer | None:
    if outcome is None:
        return None
    request_id = scope["state"]["request_id"]
    if isinstance(outcome, DeadlineError):
        problem = problem_of(outcome)
        return problem.status, Written(write_problem(problem, request_id).body, MEDIA_TYPE)
    took_ms = (time.perf_counter() - start) * 1e3
    written = write_ranking(outcome, asked, compact=compact, request_id=request_id, took_ms=took_ms)
    return 200, written
