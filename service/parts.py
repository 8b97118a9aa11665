"""What the routes speak to; put together by the app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.admission import Admission
from service.background import Background
from service.changes import Changes
from service.draining import Drain
from service.events import Events
from service.live_model import LiveModel
from service.profiles import Profiles
from service.quick_scoring import QuickScoring
from service.scoring import Scoring
from service.settings import Settings
from service.state import State


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each."""

    settings: Settings
    drain: Drain
    state: State
    live: LiveModel
    changes: Changes
    profiles: Profiles
    background: Background
    admission: Admission
    scoring: Scoring
    quick_scoring: QuickScoring
    events: Events


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(_parts)]
