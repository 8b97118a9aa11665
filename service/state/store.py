"""Histories, profiles and videos: every question to Redis, and what its answer means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from service.lifetimes import Lifetimes
from service.state.change_log import read_logs
from service.state.codec import (
    META_BYTES,
    Position,
    Video,
    mark,
    pack_click,
    pack_version,
    pack_video,
    unpack_click,
    unpack_meta,
    unpack_video,
)
from service.state.door import Call, Door, Question, Script
from service.state.facts import (
    Appended,
    Changes,
    Cursors,
    Deleted,
    History,
    NewClick,
    NewProfile,
    View,
)
from service.state.keys import GROUPS, RECENT, by_group, group_of, log_key, user_keys, video_key

HISTORY_LENGTH: Final = 160
EVENT_IDS: Final = 160
UNCHANGED, CHANGED, NEW = range(3)
"""What became of a video that was to be stored."""

_APPEND: Final = Script.load("append")
_CLICKED: Final = Script.load("clicked")
_DELETE_USER: Final = Script.load("delete_user")
_FORGOTTEN: Final = Script.load("forgotten")
_HISTORY: Final = Script.load("history")
_REGISTER: Final = Script.load("register")
_RENEWED: Final = Script.load("renewed")
_STORE_PROFILE: Final = Script.load("store_profile")

LOG_ENTRIES: Final = 1_000
_CLICKS_PER_CALL: Final = 1_000
_FEW_CLICKS: Final = 100
_VERDICTS: Final = {
    ord("a"): "accepted",
    ord("l"): "late",
    ord("o"): "too_old",
    ord("d"): "duplicate",
    ord("x"): "deleted",
}


class Look(NamedTuple):
    """A look at a user and at videos that is on its way.

    Attributes:
        question: to Redis.
        profile: whether the stored profile is asked for.
        places: of the videos that each command reads.
        videos: how many.
    """

    question: Question
    profile: bool
    places: list[list[int]]
    videos: int


class State:
    """What is remembered. One per process, for one event loop.

    Args:
        url: see ``clients``.
        timeout_seconds: limit of connecting and of one answer.
        lifetimes: how long facts are kept.

    All methods raise :class:`StateDownError` when Redis is gone or too slow.
    """

    def __init__(
        self, url: str, *, timeout_seconds: float = 1.0, lifetimes: Lifetimes | None = None
    ) -> None:
        self._door = Door(url, timeout_seconds=timeout_seconds)
        self.asks_at_once = self._door.asks_at_once
        """Whether :meth:`look` usually sends its question before it returns."""
        kept = lifetimes or Lifetimes()
        self._user_ms = _milliseconds(kept.user_idle)
        self._video_ms = _milliseconds(kept.video_idle)
        self._window_ms = max(1, _milliseconds(kept.deletion_window))

    async def close(self) -> None:
        """Close all connections."""
        await self._door.close()

    async def ping(self) -> None:
        """Prove that Redis answers."""
        await self._door.call([("GET", "ping")])

    @property
    def reached(self) -> bool:
        """Whether Redis has ever answered."""
        return self._door.reached

    @property
    def circuit_open(self) -> bool:
        """Whether calls fail at once, for Redis failed before."""
        return self._door.is_open

    async def append(self, clicks: Sequence[NewClick]) -> Appended:
        """Append clicks, any number in one round trip; once this returns, Redis has them.

        Repeating a call changes nothing: it gives the same history.
        """
        by_user: dict[str, list[int]] = {}
        for index, new in enumerate(clicks):
            by_user.setdefault(new.user_id, []).append(index)
        video_ids = list({new.click.video_id for new in clicks})
        calls: list[Call] = []
        parts: list[list[int]] = []
        for user, rows in by_user.items():
            # A script's run holds up everyone else's commands: long ones are cut.
            for start in range(0, len(rows), _CLICKS_PER_CALL):
                part = rows[start : start + _CLICKS_PER_CALL]
                parts.append(part)
                calls.append(self._append_call(user, [clicks[i] for i in part]))
        marks, places = self._clicked_calls(video_ids)
        answers = await self._door.call(
            [*calls, *marks], scripts=(_APPEND, _CLICKED), quick=len(clicks) <= _FEW_CLICKS
        )
        registered = _spread(answers[len(calls) :], places, video_ids)
        verdicts = [""] * len(clicks)
        users: dict[str, Position] = {}
        due: list[str] = []
        for part, (letters, version, length, renewal) in zip(parts, answers, strict=False):
            user = clicks[part[0]].user_id
            users[user] = Position(int(version), int(length))
            if renewal:
                due.append(user)
            for row, letter in zip(part, letters, strict=True):
                verdicts[row] = _VERDICTS[letter]
        if due:
            await self._renew(due)
        known = [bool(registered[new.click.video_id]) for new in clicks]
        return Appended(verdicts, known, users)

    async def view(self, user_id: str, video_ids: Sequence[str]) -> View:
        """Read a user and videos in one round trip.

        The profile may be newer or older than the meta: it names its own history version.
        """
        return await self.seen(self.look(user_id, video_ids))

    def look(self, user_id: str, video_ids: Sequence[str], *, profile: bool = True) -> Look:
        """Ask for what :meth:`view` reads; the question is sent, if it can be, when this returns.

        Args:
            user_id: the user.
            video_ids: videos to read as well.
            profile: whether to read the stored profile, some kilobytes, too.
        """
        keys = user_keys(user_id)
        calls: list[Call] = [("GETRANGE", keys.meta, 0, META_BYTES - 1)]
        if profile:
            calls.append(("GET", keys.profile))
        reads, places = self._video_reads(video_ids) if video_ids else ([], [])
        return Look(self._door.ask([*calls, *reads]), profile, places, len(video_ids))

    async def seen(self, look: Look) -> View:
        """Return what came of a look."""
        return _view(look, await self._door.answer(look.question))

    def seen_now(self, look: Look) -> View | None:
        """Return what came of a look if it is here; nothing where it is not, or an error came."""
        answers = self._door.answer_now(look.question)
        return None if answers is None else _view(look, answers)

    async def history(self, user_id: str) -> History:
        """Read a history."""
        [history] = await self.histories([user_id])
        if history is None:
            raise AssertionError("nobody can lease what nobody asked for")
        return history

    async def histories(
        self, user_ids: Sequence[str], *, lease_ms: int = 0, token: str = ""
    ) -> list[History | None]:
        """Read histories and take the leases to compute their profiles.

        A lease keeps other processes from the same work for ``lease_ms``; 0 takes none. ``None``
        stands for a user whose lease another process holds. A full Redis grants none.
        """
        calls = []
        for user_id in user_ids:
            keys = user_keys(user_id)
            names = [keys.history, keys.meta, keys.lease]
            calls.append(_HISTORY.call(names, lease_ms, token))
        answers = await self._door.call(calls, scripts=(_HISTORY,), quick=True)
        return [_history(answer) for answer in answers]

    async def store_profiles(self, profiles: Sequence[NewProfile]) -> list[bool]:
        """Store profiles whose histories have not moved on; return which were stored.

        One that is there of the same history stays if its facts were read later.
        """
        calls = []
        for new in profiles:
            keys = user_keys(new.user_id)
            names = [keys.meta, keys.profile, keys.lease]
            version = pack_version(new.version)
            calls.append(_STORE_PROFILE.call(names, version, new.packed, new.lease, new.read_at_ms))
        stored = await self._door.call(calls, scripts=(_STORE_PROFILE,), quick=True)
        return [bool(s) for s in stored]

    async def delete_user(self, user_id: str) -> Deleted:
        """Remove every trace of a user but the time up to which clicks are refused from now on."""
        call = _DELETE_USER.call(user_keys(user_id), self._window_ms)
        [(version, floor, existed)] = await self._door.call([call], scripts=(_DELETE_USER,))
        # What processes hold in memory goes with it: they follow this log.
        key = log_key(group_of(user_id))
        log = _FORGOTTEN.call([key], LOG_ENTRIES, mark(user_id), int(version))
        await self._door.call([log], scripts=(_FORGOTTEN,))
        return Deleted(bool(existed), int(version), int(floor))

    async def videos(self, video_ids: Sequence[str]) -> list[Video | None]:
        """Read videos in one round trip; ``None`` for what is not registered."""
        if not video_ids:
            return []
        reads, places = self._video_reads(video_ids)
        return _videos(await self._door.call(reads), places, len(video_ids))

    async def registered(self, video_ids: Sequence[str]) -> list[bool]:
        """Say which videos are registered."""
        calls: list[Call] = [("STRLEN", video_key(video_id)) for video_id in video_ids]
        return [length > 0 for length in await self._door.call(calls)] if calls else []

    async def register(self, videos: Sequence[tuple[str, Video]]) -> list[bool]:
        """Store videos by id; return which of them were written.

        Writes nothing for a video that is stored with the same bytes already. A call that fails
        may have stored some of them; repeating it is safe.
        """
        packed = [(video_id, pack_video(video)) for video_id, video in videos]
        return [result > 0 for result in await self.register_packed(packed)]

    async def register_packed(self, videos: Sequence[tuple[str, bytes]]) -> list[int]:
        """Store videos as :func:`pack_video` writes them; ``UNCHANGED``, ``CHANGED`` or ``NEW`` each."""
        ids = [video_id for video_id, _ in videos]
        groups = by_group(ids)
        calls = []
        for group, rows in groups.items():
            keys = [log_key(group), *(video_key(ids[row]) for row in rows)]
            values = [part for row in rows for part in videos[row]]
            calls.append(_REGISTER.call(keys, self._video_ms, LOG_ENTRIES, *values))
        results = [0] * len(ids)
        if calls:
            answers = await self._door.call(calls, scripts=(_REGISTER,))
            for rows, answer in zip(groups.values(), answers, strict=True):
                for row, result in zip(rows, answer, strict=True):
                    results[row] = int(result)
        return results

    async def delete_video(self, video_id: str) -> bool:
        """Delete a video; histories keep their clicks on it, models no longer see them."""
        [result] = await self.register_packed([(video_id, b"")])
        return result > 0

    async def remember_videos(self, video_ids: Sequence[str]) -> None:
        """Write down the videos used last, newest first, for a process that starts later."""
        text = "\n".join(video_ids)
        await self._door.call([("SET", RECENT, text, "PX", max(1, self._window_ms))])

    async def recent_videos(self) -> list[str]:
        """Return what was written down last: no id holds a line break."""
        [text] = await self._door.call([("GET", RECENT)])
        return text.decode().split("\n") if text else []

    async def changes(self, cursors: Cursors) -> Changes:
        """Read what changed since ``cursors``; an empty one starts at the beginning."""
        groups = range(GROUPS)
        starts = [cursors.get(group, (b"0", 0))[0] for group in groups]
        if self._door.clustered:
            calls: list[Call] = [
                ("XREAD", "STREAMS", log_key(group), starts[group]) for group in groups
            ]
        else:
            calls = [("XREAD", "STREAMS", *map(log_key, groups), *starts)]
        answers = await self._door.call(calls)
        logs = {_text(key): entries for answer in answers for key, entries in answer or ()}
        return read_logs(logs, cursors)

    def _append_call(self, user_id: str, clicks: Sequence[NewClick]) -> Call:
        history, meta, profile, _ = user_keys(user_id)
        arguments: list[Any] = [HISTORY_LENGTH, EVENT_IDS, self._user_ms]
        for new in clicks:
            arguments += (pack_click(new.click), mark(new.event_id))
        return _APPEND.call([history, meta, profile], *arguments)

    def _clicked_calls(self, video_ids: Sequence[str]) -> tuple[list[Call], list[list[int]]]:
        if self._video_ms == 0:
            life = -1
        elif self._user_ms == 0:
            life = 0
        else:
            # A user is alive for 1.05 idle times after the last click, and the videos of one
            # who is are renewed once half an idle time has gone: 1.55 at most.
            life = max(self._video_ms, 2 * self._user_ms)
        places = self._places(video_ids)
        return [_CLICKED.call([video_key(video_ids[i]) for i in p], life) for p in places], places

    async def _renew(self, user_ids: Sequence[str]) -> None:
        histories = await self.histories(user_ids)
        ids = list({c.video_id for history in histories if history for c in history.clicks})
        calls, _ = self._clicked_calls(ids)
        if calls:
            await self._door.call(calls, scripts=(_CLICKED,))
        marks = [_RENEWED.call([user_keys(user_id).meta]) for user_id in user_ids]
        await self._door.call(marks, scripts=(_RENEWED,))

    def _video_reads(self, video_ids: Sequence[str]) -> tuple[list[Call], list[list[int]]]:
        places = self._places(video_ids)
        return [("MGET", *(video_key(video_ids[i]) for i in p)) for p in places], places

    def _places(self, video_ids: Sequence[str]) -> list[list[int]]:
        # One command takes them all, where they need not share a slot.
        if self._door.clustered:
            return list(by_group(video_ids).values())
        return [list(range(len(video_ids)))] if video_ids else []


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1e3)


def _spread(
    answers: Sequence[Sequence[Any]], places: Sequence[Sequence[int]], ids: Sequence[str]
) -> dict[str, Any]:
    return {
        ids[place]: value
        for answer, part in zip(answers, places, strict=True)
        for place, value in zip(part, answer, strict=True)
    }


def _videos(
    answers: Sequence[Sequence[bytes | None]], places: Sequence[Sequence[int]], count: int
) -> list[Video | None]:
    videos: list[Video | None] = [None] * count
    for answer, part in zip(answers, places, strict=True):
        for place, value in zip(part, answer, strict=True):
            videos[place] = unpack_video(value)
    return videos


def _view(look: Look, answers: Sequence[Any]) -> View:
    meta, *rest = answers
    profile = rest.pop(0) if look.profile else None
    return View(unpack_meta(meta), profile, _videos(rest, look.places, look.videos) if rest else [])


def _history(answer: Sequence[Any]) -> History | None:
    if int(answer[0]) == 0:
        return None
    now, leased, meta, entries = answer
    return History(int(now), bool(leased), unpack_meta(meta), [unpack_click(e) for e in entries])


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key
