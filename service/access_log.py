"""A line for a request: which, what became of it, how long it took; nothing of what it said."""

from __future__ import annotations

import logging
from typing import Final, Literal

_FAILED: Final = 500

_log: Final = logging.getLogger("service.access")


class AccessLog:
    """Writes lines of requests.

    A line has the template of the route, ``/users/{user_id}``, never the path, its query or a
    body: these name users and what they saw.

    Args:
        which: all requests, notable ones, or none.
        slow_ms: a request that takes longer is notable.
    """

    def __init__(self, which: Literal["all", "notable", "off"], slow_ms: float) -> None:
        self._which = which
        self._slow_ms = slow_ms

    def note(self, method: str, route: str, status: int | None, took_ms: float) -> None:
        """Write a request's line, if it is one of those that get one.

        Args:
            method: of HTTP.
            route: the template of its path, or ``unmatched``.
            status: of the answer; ``None`` where the caller went away before.
            took_ms: from its first byte to the last of its answer.
        """
        if self._which == "off":
            return
        failed = status is None or status >= _FAILED
        if self._which == "notable" and not failed and took_ms < self._slow_ms:
            return
        level = logging.WARNING if failed else logging.INFO
        if not _log.isEnabledFor(level):
            return
        more = {"method": method, "path": route, "status": status, "ms": round(took_ms, 3)}
        _log.log(level, "request", extra=more)
