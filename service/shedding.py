"""Requests that are one too many, refused by their heads.

When there is more to do than can be done, most requests are refused: what that costs is what the
others cannot have. Nothing is parsed, no task is made, and little code is run, for between two
rankings it is in no cache.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Final

from service.access_log import AccessLog
from service.admission import Admission, OverloadedError
from service.draining import Drain
from service.http_protocol import Answer, lines_of
from service.metrics import note_request
from service.problems import RepeatedProblem
from service.refusals import TOO_MANY, problem_of
from service.request_context import answer_lines, told_by

_METHOD: Final = "POST"


class Shedding:
    """Refuses POSTs.

    Args:
        admission: knows whether there is room.
        paths: of requests that need room.
        max_body_bytes: longer ones are refused for their length, elsewhere.
        access_log: gets their lines.
        drain: once it has begun answers end their connections, and none is given here.
    """

    def __init__(
        self,
        admission: Admission,
        paths: Collection[str],
        *,
        max_body_bytes: int,
        access_log: AccessLog,
        drain: Drain,
    ) -> None:
        self._admission = admission
        self._paths = paths
        self._max_body_bytes = max_body_bytes
        self._access_log = access_log
        self._drain = drain
        self._problem = RepeatedProblem(problem_of(OverloadedError(TOO_MANY)))
        self._lines = lines_of(self._problem.headers)

    def is_on(self) -> bool:
        """Whether any are refused now."""
        return self._admission.full and not self._drain.begun

    def refusal(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Answer | None:
        """Return the whole answer to a POST that is one too many, where any are.

        Args:
            path: of the request.
            headers: of it, names in lower case.

        Returns:
            Nothing for a request that needs no room, and where what is usual does not suffice.
        """
        if path not in self._paths:
            return None
        told = told_by(headers)
        if told.length > self._max_body_bytes:
            return None
        request, problem = told.context(), self._problem
        body = problem.body(request.request_id)
        what = b"%scontent-length: %d\r\n" % (self._lines, len(body))
        lines = what + answer_lines(request)
        took = time.perf_counter() - request.start
        note_request(path, problem.status, took)
        self._access_log.note(_METHOD, path, problem.status, 1e3 * took)
        return problem.status, lines, body
