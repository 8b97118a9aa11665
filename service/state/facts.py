"""What goes into the state and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model_store import Click
from service.state.codec import Meta, Position, Video

Cursors = Mapping[int, tuple[bytes, int]]
"""Where a reader of the change logs stands: by group, the last entry's id and number."""


@dataclass(frozen=True, slots=True)
class NewClick:
    """A click to append; ``event_id`` is empty where the caller gave none."""

    user_id: str
    click: Click
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of clicks.

    Attributes:
        verdicts: one per click: accepted, late, too_old, duplicate or deleted.
        known: one per click: whether its video is registered.
        users: where the users' histories stand now.
    """

    verdicts: list[str]
    known: list[bool]
    users: dict[str, Position]


@dataclass(frozen=True, slots=True)
class View:
    """A look at a user, and at videos; ``None`` = not registered.

    Attributes:
        meta: what is kept of the user beside the clicks.
        profile: as stored, if it was asked for.
        videos: those asked for, in order.
        registered: whether videos are that were asked about besides.
    """

    meta: Meta
    profile: bytes | None
    videos: list[Video | None]
    registered: Mapping[str, bool] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """Where the history stands."""
        return self.meta.position


@dataclass(frozen=True, slots=True)
class History:
    """A history at one moment.

    Attributes:
        read_at_ms: the moment, by the clock of Redis.
        leased: whether the caller has the lease now, if it asked for one.
        meta: what is kept beside the clicks.
        clicks: oldest first.
    """

    read_at_ms: int
    leased: bool
    meta: Meta
    clicks: list[Click]


@dataclass(frozen=True, slots=True)
class NewProfile:
    """A profile to store; gives the lease back.

    Attributes:
        user_id: the user.
        version: of the history; the profile is stored only if it is still there.
        packed: the profile.
        lease: token of the lease.
        read_at_ms: when history and videos were read, by the clock of Redis; a stored profile of
            the same history that was made from what was read later stays.
    """

    user_id: str
    version: int
    packed: bytes
    lease: str = ""
    read_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deleted user: the version now, and up to when clicks are refused."""

    existed: bool
    version: int
    refused_until_ms: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What the change logs of all groups say since last time.

    Attributes:
        cursors: where each log stands; hand it back next time.
        videos: changed videos, each with the time of the change in ms.
        appeared: videos that are registered anew; some may have been before, and expired.
        users: marks of deleted users, each with the version that the deletion left.
        unknown_before_ms: changes up to this time may be missing; 0 when none is.
        gap: changes since last time may be missing.
    """

    cursors: Cursors
    videos: list[tuple[str, int]]
    appeared: list[str]
    users: list[tuple[bytes, int]]
    unknown_before_ms: int
    gap: bool
