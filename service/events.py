"""From raw events to verdicts: what the clock and the form decide, then what Redis decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from model_store import Click
from service import metrics
from service.background import Background
from service.bodies import EventIn, reasons
from service.last_profiles import LastProfiles
from service.state import NewClick, Position, State

_REASONS: Final = {
    "too_old": "older than the oldest of the 160 clicks that are kept",
    "deleted": "the user was deleted after this click",
}
_CHANGES: Final = ("accepted", "late")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one event.

    Attributes:
        status: accepted, late, too_old, duplicate, deleted, future or invalid.
        reason: why an event was turned away.
        video_known: whether the video is registered; its click is kept in any case.
    """

    status: str
    reason: str | None = None
    video_known: bool = True


class Events:
    """Takes clicks in.

    Args:
        state: where histories are.
        last: told whose profiles are behind.
        background: computes them.
        future_tolerance_seconds: how far an event may be ahead of this clock.
    """

    def __init__(
        self,
        state: State,
        last: LastProfiles,
        background: Background,
        *,
        future_tolerance_seconds: float,
    ) -> None:
        self._state = state
        self._last = last
        self._background = background
        self._tolerance_ms = future_tolerance_seconds * 1e3

    async def record(self, raw: Sequence[object]) -> tuple[list[Verdict], dict[str, Position]]:
        """Append events; a verdict each, and where their users' histories stand.

        Raises:
            StateDownError: Redis did not take them all; repeating the call is safe.
        """
        now_ms = time.time() * 1e3
        checked = [_check(event, now_ms, self._tolerance_ms) for event in raw]
        clicks = [c for c in checked if isinstance(c, NewClick)]
        if not clicks:
            verdicts = [c for c in checked if isinstance(c, Verdict)]
            _count(verdicts)
            return verdicts, {}
        with metrics.stage("append", "redis"):
            appended = await self._state.append(clicks)
        answers = zip(appended.verdicts, appended.known, strict=True)
        verdicts = [c if isinstance(c, Verdict) else _verdict(*next(answers)) for c in checked]
        _count(verdicts)
        self._last.moved(appended.users)
        # Of a history that a delivery left as it was the profile is as good as before.
        told = zip(clicks, appended.verdicts, strict=True)
        self._background.refresh({c.user_id: None for c, verdict in told if verdict in _CHANGES})
        return verdicts, appended.users


def _check(event: object, now_ms: float, tolerance_ms: float) -> NewClick | Verdict:
    try:
        given = EventIn.model_validate(event)
    except ValidationError as exc:
        return Verdict("invalid", reasons(exc))
    ahead_ms = given.timestamp - now_ms
    if ahead_ms > tolerance_ms:
        return Verdict(
            "future",
            f"timestamp: {ahead_ms / 1e3:.1f} s ahead of this clock, "
            f"{tolerance_ms / 1e3:g} s are tolerated",
        )
    return NewClick(given.user_id, Click(given.timestamp, given.video_id), given.event_id or "")


def _verdict(status: str, known: bool) -> Verdict:
    return Verdict(status, _REASONS.get(status), known)


def _count(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        metrics.EVENTS.labels(verdict.status).inc()
