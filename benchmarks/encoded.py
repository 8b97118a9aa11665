"""Histories in Redis by three encodings: what appends to them, and clicks to append."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hiredis

from benchmarks.redis_process import Server
from model_store import Click
from service.state.codec import mark, pack_click
from service.state.keys import user_keys

SCRIPTS = Path(__file__).parents[1] / "service/state/scripts"
ENCODINGS = Path(__file__).parent / "encodings"
APPEND = SCRIPTS / "append.lua"
CLICKS = 160
START_MS = 1_700_000_000_000
PIPELINE = 100

Command = tuple[str | bytes | int, ...]


@dataclass(frozen=True)
class Encoding:
    """A way to keep a history: its script, and the command that appends clicks."""

    name: str
    script: Path
    command: Callable[[str, Sequence[tuple[int, str, str]]], Command]

    @property
    def sha(self) -> str:
        """Redis' name of the script."""
        return hashlib.sha1(self.script.read_bytes(), usedforsecurity=False).hexdigest()


def _listed(user: str, clicks: Sequence[tuple[int, str, str]]) -> Command:
    keys = user_keys(user)
    parts: list[str | bytes | int] = []
    for at, video, event in clicks:
        parts += [pack_click(Click(at, video)), mark(event)]
    return (3, keys.history, keys.meta, keys.profile, CLICKS, CLICKS, 0, *parts)


def _sorted(user: str, clicks: Sequence[tuple[int, str, str]]) -> Command:
    parts: list[str | bytes | int] = []
    for at, video, event in clicks:
        parts += [at, f"{at}:{video}", mark(event)]
    return (3, f"z:{{{user}}}:h", f"z:{{{user}}}:m", f"z:{{{user}}}:e", CLICKS, CLICKS, *parts)


def _packed(user: str, clicks: Sequence[tuple[int, str, str]]) -> Command:
    parts: list[str | bytes | int] = []
    for at, video, event in clicks:
        parts += [pack_click(Click(at, video)), mark(event)]
    return (1, f"s:{{{user}}}", CLICKS, 0, *parts)


LIST = Encoding("list", APPEND, _listed)
ENCODED = [
    LIST,
    Encoding("sorted_set", ENCODINGS / "sorted_set.lua", _sorted),
    Encoding("packed_value", ENCODINGS / "packed_value.lua", _packed),
]


class Load:
    """Clicks of many users, each newer than all before."""

    def __init__(self, users: int, *, events: bool, digits: int = 7) -> None:
        self._digits = digits
        self._rng = random.Random(5)
        self._users = users
        self._events = events
        self._at = START_MS

    def clicks(self, count: int) -> list[tuple[int, str, str]]:
        """Return new clicks: time, video id (of 7 digits, as in the public logs), event id or none."""
        made = []
        for _ in range(count):
            self._at += 1
            event = f"event-{self._at}" if self._events else ""
            made.append(
                (self._at, f"{self._rng.randrange(10**self._digits):0{self._digits}d}", event)
            )
        return made

    def user(self) -> str:
        """Return one of the users."""
        return f"user{self._rng.randrange(self._users):06d}"

    def users(self) -> list[str]:
        """Return all of them."""
        return [f"user{number:06d}" for number in range(self._users)]


def fill(redis: Server, encoding: Encoding, load: Load) -> None:
    """Give every user a full history, in calls of 20."""
    redis.ask("SCRIPT", "LOAD", encoding.script.read_bytes())
    for user in load.users():
        packed = [
            hiredis.pack_command(
                ("EVALSHA", encoding.sha, *encoding.command(user, load.clicks(20)))
            )
            for _ in range(CLICKS // 20)
        ]
        redis.exchange(packed, len(packed))


def appends(
    redis: Server, encoding: Encoding, load: Load, *, per_call: int, total: int
) -> tuple[float, float]:
    """Append; return appends per second of wall time, and per second of Redis' CPU."""
    calls = [
        hiredis.pack_command(
            ("EVALSHA", encoding.sha, *encoding.command(load.user(), load.clicks(per_call)))
        )
        for _ in range(total // per_call)
    ]
    batch = max(1, PIPELINE // per_call)
    cpu, start = redis.cpu_seconds(), time.perf_counter()
    for at in range(0, len(calls), batch):
        part = calls[at : at + batch]
        redis.exchange(part, len(part))
    wall = time.perf_counter() - start
    count = len(calls) * per_call
    return count / wall, count / max(redis.cpu_seconds() - cpu, 1e-3)
