"""What is remembered, in Redis (6.2 commands): the only module that speaks to it.

    u:{USER}:h  zset   score = time in ms, member = "MS:VIDEO"; the newest 160 clicks
    u:{USER}:m  hash   history_version; events = counter of event ids
    u:{USER}:p  bytes  profile, opaque here
    u:{USER}:e  zset   the newest 320 event ids, in order of arrival
    v:{VIDEO}   bytes  category and features as float16
    videos      hash   changed, written: counters that caches compare

Redis breaks ties of a score by the bytes of the member, and members with one score share
their "MS:" part: the order is :meth:`model_store.Click.order`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from model_store import Click, FloatArray

HISTORY_LENGTH: Final = 160
EVENT_IDS: Final = 320
FEATURE_LIMIT: Final = float(np.finfo(np.float16).max)
"""Largest magnitude that a stored feature may have."""

_CONNECTIONS: Final = 32
_COUNTERS: Final = "videos"
_PACKED: Final = b"\x01"


class StateDownError(Exception):
    """Redis cannot be reached, or refuses to work."""


@dataclass(frozen=True, slots=True)
class Video:
    """A registered video: category and features [F], as far as float16 keeps them."""

    category: int
    features: FloatArray


@dataclass(frozen=True, slots=True)
class NewClick:
    """A click to append; ``event_id`` is empty where the caller gave none."""

    user_id: str
    click: Click
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a user's history stands: version 0 and length 0 when there is none."""

    version: int
    length: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of the video table: changes of known videos, and writes of any."""

    changed: int
    written: int


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of clicks.

    Attributes:
        verdicts: one per click: accepted, late, too_old or duplicate.
        known: one per click: whether its video is registered.
        users: where the users' histories stand now.
    """

    verdicts: list[str]
    known: list[bool]
    users: dict[str, Position]


@dataclass(frozen=True, slots=True)
class Videos:
    """One consistent look at the videos asked for; ``None`` = not registered."""

    counters: Counters
    videos: list[Video | None]


@dataclass(frozen=True, slots=True)
class View:
    """One consistent look at a user, and at videos as in :class:`Videos`."""

    position: Position
    profile: bytes | None
    counters: Counters
    videos: list[Video | None]


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str


def _script(name: str) -> _Script:
    text = (Path(__file__).parent / name).read_text()
    # Redis names scripts by SHA-1; nothing here rests on its strength.
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_APPEND: Final = _script("append.lua")
_REGISTER: Final = _script("register.lua")
_STORE_PROFILE: Final = _script("store_profile.lua")


class State:
    """Histories, profiles and videos. One per process, for one event loop.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_seconds: limit of connecting and of one answer.

    All methods raise :class:`StateDownError` when Redis is gone or too slow.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # Every command here may be repeated; once, for a connection that went stale.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = redis.Redis(connection_pool=pool)
        self._pool = pool

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
        await self._pool.disconnect()

    async def ping(self) -> None:
        """Prove that Redis answers."""
        with _translated():
            [answer] = await self._execute([("PING",)])
            if isinstance(answer, Exception):
                raise answer

    async def append(self, clicks: Sequence[NewClick]) -> Appended:
        """Append clicks, any number in one round trip; once this returns, Redis has them.

        Repeating a call changes nothing: it gives the same history.
        """
        by_user: dict[str, list[int]] = {}
        for index, new in enumerate(clicks):
            by_user.setdefault(new.user_id, []).append(index)
        video_ids = list({new.click.video_id for new in clicks})
        calls = [_append_call(user, [clicks[i] for i in rows]) for user, rows in by_user.items()]
        exists = [("EXISTS", _video_key(video_id)) for video_id in video_ids]
        answers = await self._pipeline([*calls, *exists], script=_APPEND)
        registered = dict(zip(video_ids, answers[len(calls) :], strict=True))
        verdicts = [""] * len(clicks)
        users: dict[str, Position] = {}
        for (user, rows), answer in zip(by_user.items(), answers, strict=False):
            users[user] = Position(int(answer[0]), int(answer[1]))
            for row, verdict in zip(rows, answer[2:], strict=True):
                verdicts[row] = verdict.decode()
        known = [bool(registered[new.click.video_id]) for new in clicks]
        return Appended(verdicts, known, users)

    async def view(self, user_id: str, video_ids: Sequence[str]) -> View:
        """Read a user and videos in one round trip."""
        history, meta, profile, _ = _user_keys(user_id)
        calls: list[tuple[Any, ...]] = [
            ("HGET", meta, "history_version"),
            ("ZCARD", history),
            ("GET", profile),
            *_video_calls(video_ids),
        ]
        version, length, packed, *rest = await self._pipeline(calls, transaction=True)
        found = _video_answers(rest)
        position = Position(int(version or 0), int(length))
        return View(position, packed, found.counters, found.videos)

    async def history(self, user_id: str) -> tuple[int, list[Click]]:
        """Read the version and the clicks of a history, oldest first."""
        history, meta, _, _ = _user_keys(user_id)
        calls = [("HGET", meta, "history_version"), ("ZRANGE", history, 0, -1)]
        version, members = await self._pipeline(calls, transaction=True)
        return int(version or 0), [_click(member) for member in members]

    async def videos(self, video_ids: Sequence[str]) -> Videos:
        """Read videos in one round trip; ``None`` for what is not registered."""
        return _video_answers(await self._pipeline(_video_calls(video_ids), transaction=True))

    async def register(self, videos: Sequence[tuple[str, Video]]) -> list[bool]:
        """Store videos by id, all or none; return which of them were written.

        Writes nothing for a video that is stored with the same bytes already.
        """
        if not videos:
            return []
        keys = [_COUNTERS, *(_video_key(video_id) for video_id, _ in videos)]
        values = [_pack(video) for _, video in videos]
        call = ("EVALSHA", _REGISTER.sha, len(keys), *keys, *values)
        [answer] = await self._pipeline([call], script=_REGISTER)
        return [bool(written) for written in answer]

    async def store_profile(self, user_id: str, profile: bytes, *, version: int) -> bool:
        """Store a profile unless the history has left ``version``; return whether it was."""
        _, meta, key, _ = _user_keys(user_id)
        call = ("EVALSHA", _STORE_PROFILE.sha, 2, meta, key, version, profile)
        [stored] = await self._pipeline([call], script=_STORE_PROFILE)
        return bool(stored)

    async def _pipeline(
        self,
        calls: Sequence[tuple[Any, ...]],
        *,
        transaction: bool = False,
        script: _Script | None = None,
    ) -> list[Any]:
        with _translated():
            answers = await self._execute(calls, transaction=transaction)
            missing = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
            if missing and script is not None:
                # A fresh or restarted Redis: one more round trip, once.
                await self._execute([("SCRIPT LOAD", script.text)])
                again = await self._execute([calls[i] for i in missing])
                for index, answer in zip(missing, again, strict=True):
                    answers[index] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    async def _execute(
        self, calls: Sequence[tuple[Any, ...]], *, transaction: bool = False
    ) -> list[Any]:
        async with self._redis.pipeline(transaction=transaction) as pipe:
            for call in calls:
                pipe.execute_command(*call)
            return await pipe.execute(raise_on_error=False)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (TimeoutError, RedisError, OSError) as exc:
        raise StateDownError(f"Redis does not answer: {str(exc) or type(exc).__name__}") from exc


def _user_keys(user_id: str) -> tuple[str, str, str, str]:
    # A brace inside the id would end the hash tag early, or make it empty.
    tag = user_id.replace("%", "%25").replace("}", "%7D")
    history, meta, profile, events = (f"u:{{{tag}}}:{part}" for part in "hmpe")
    return history, meta, profile, events


def _video_key(video_id: str) -> str:
    return f"v:{{{video_id}}}"


def _append_call(user_id: str, clicks: Sequence[NewClick]) -> tuple[Any, ...]:
    history, meta, _, events = _user_keys(user_id)
    arguments: list[Any] = [HISTORY_LENGTH, EVENT_IDS]
    for new in clicks:
        moment = new.click.clicked_at_ms
        arguments += (moment, f"{moment}:{new.click.video_id}", new.event_id)
    return ("EVALSHA", _APPEND.sha, 3, history, meta, events, *arguments)


def _video_calls(video_ids: Sequence[str]) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = [("HMGET", _COUNTERS, "changed", "written")]
    if video_ids:
        calls.append(("MGET", *map(_video_key, video_ids)))
    return calls


def _video_answers(answers: Sequence[Any]) -> Videos:
    changed, written = answers[0]
    packed = answers[1] if len(answers) > 1 else []
    counters = Counters(int(changed or 0), int(written or 0))
    return Videos(counters, [_unpack(value) for value in packed])


def _click(member: bytes) -> Click:
    moment, _, video_id = member.partition(b":")
    return Click(int(moment), video_id.decode())


def _pack(video: Video) -> bytes:
    category = video.category.to_bytes(8, "little", signed=True)
    return _PACKED + category + video.features.astype("<f2").tobytes()


def _unpack(value: bytes | None) -> Video | None:
    # A value of another format is one that this version never wrote: not registered here.
    if value is None or not value.startswith(_PACKED):
        return None
    features = np.frombuffer(value, "<f2", offset=9).astype(np.float32)
    return Video(int.from_bytes(value[1:9], "little", signed=True), features)
