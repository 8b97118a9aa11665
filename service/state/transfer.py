"""All facts out of one Redis and into another: users and videos, no profiles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from service.lifetimes import Lifetimes
from service.state.codec import unpack_click
from service.state.door import Door, Script
from service.state.facts import NewClick
from service.state.keys import by_group, log_key, user_keys, user_of, video_key, video_of
from service.state.store import LOG_ENTRIES, State

_DUMP_USER: Final = Script.load("dump_user")
_RESTORE_USER: Final = Script.load("restore_user")
_RESTORE_VIDEO: Final = Script.load("restore_video")


@dataclass(frozen=True, slots=True)
class UserFacts:
    """A user as stored.

    Attributes:
        user_id: the user.
        meta: version, deletion, marks of event ids; see ``codec``.
        entries: packed clicks, oldest first.
        life_ms: how long the user has left to live; -1 = for ever.
    """

    user_id: str
    meta: bytes
    entries: Sequence[bytes]
    life_ms: int


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """A video as stored; see :class:`UserFacts`."""

    video_id: str
    value: bytes
    life_ms: int


class Transfer:
    """Reads and writes all facts of one Redis.

    What changes while it reads comes in its old or its new state; what is there all the time
    comes at least once.

    Args:
        url: see ``clients``.
        lifetimes: as the service has them.
        timeout_seconds: limit of one answer.

    All methods raise :class:`StateDownError` when Redis is gone or too slow.
    """

    def __init__(self, url: str, *, lifetimes: Lifetimes, timeout_seconds: float = 10.0) -> None:
        self._door = Door(url, timeout_seconds=timeout_seconds)
        self._state = State(url, timeout_seconds=timeout_seconds, lifetimes=lifetimes)

    async def close(self) -> None:
        """Close all connections."""
        await self._door.close()
        await self._state.close()

    async def users(self) -> AsyncIterator[list[UserFacts]]:
        """Read all users, a few hundred at a time."""
        async for keys in self._door.scan("u:*:m"):
            ids = [user_of(key.decode()) for key in keys]
            calls = [_DUMP_USER.call(user_keys(user_id)[:2]) for user_id in ids]
            answers = await self._door.call(calls, scripts=(_DUMP_USER,))
            yield [
                UserFacts(user_id, *answer)
                for user_id, answer in zip(ids, answers, strict=True)
                if answer is not None
            ]

    async def videos(self) -> AsyncIterator[list[VideoFacts]]:
        """Read all videos, a few hundred at a time."""
        async for keys in self._door.scan("v:*"):
            calls = [command for key in keys for command in (("GET", key), ("PTTL", key))]
            answers = await self._door.call(calls)
            yield [
                VideoFacts(video_of(key.decode()), value, life)
                for key, value, life in zip(keys, answers[::2], answers[1::2], strict=True)
                if value is not None
            ]

    async def put_users(self, users: Sequence[UserFacts]) -> int:
        """Put users; return how many were new.

        Clicks of a user who is there already are appended to what is there.
        """
        if not users:
            return 0
        calls = [
            _RESTORE_USER.call(user_keys(u.user_id)[:2], u.meta, u.life_ms, *u.entries)
            for u in users
        ]
        put = await self._door.call(calls, scripts=(_RESTORE_USER,))
        there = [user for user, new in zip(users, put, strict=True) if not new]
        clicks = [NewClick(u.user_id, unpack_click(entry)) for u in there for entry in u.entries]
        if clicks:
            await self._state.append(clicks)
        return len(users) - len(there)

    async def put_videos(self, videos: Sequence[VideoFacts], *, replace: bool) -> int:
        """Put videos; return how many were written. Those that are there stay, unless replaced.

        Processes that hold what was replaced learn of it by the change log.
        """
        if not videos:
            return 0
        calls = []
        for group, places in by_group(video.video_id for video in videos).items():
            part = [videos[place] for place in places]
            keys = [log_key(group), *(video_key(video.video_id) for video in part)]
            facts = [x for v in part for x in (v.video_id, v.value, v.life_ms)]
            calls.append(_RESTORE_VIDEO.call(keys, LOG_ENTRIES, int(replace), *facts))
        return sum(await self._door.call(calls, scripts=(_RESTORE_VIDEO,)))
