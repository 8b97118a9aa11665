"""How long facts are kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long facts are kept, in seconds; 0 keeps them for ever.

    Attributes:
        user_idle: a user without a new click, at least this long and 5 % more at most.
        video_idle: a video that is neither registered again nor clicked. One that was clicked
            outlives the histories that hold it.
        deletion_window: how long clicks from before a deletion are refused.
    """

    user_idle: float = 0.0
    video_idle: float = 0.0
    deletion_window: float = 7 * 86_400.0
