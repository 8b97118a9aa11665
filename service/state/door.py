"""The one door to Redis: timeouts, retries with jitter, and a circuit that opens."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ConnectionError,  # noqa: A004  the library's
    MaxConnectionsError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004  the library's
    TryAgainError,
)

from service import metrics
from service.state.clients import Limits, close_client, make_client
from service.state.lane import Lane

Call = tuple[Any, ...]
"""A command and its arguments."""

_ATTEMPTS: Final = 3
_BACKOFF_SECONDS: Final = 0.02
_CONNECTIONS: Final = 64
_FAILURES: Final = 5
_OPEN_SECONDS: Final = 0.25
_OPEN_SECONDS_MOST: Final = 2.0
_FORGET_SECONDS: Final = 0.25
# What another attempt, perhaps at another server, may well find mended.
_PASSING: Final = (
    OSError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    # No node of a cluster can be reached.
    RedisClusterException,
    TimeoutError,
    TryAgainError,
)
_LASTING: Final = (AuthenticationError, AuthorizationError, MaxConnectionsError)


class StateDownError(Exception):
    """Redis cannot be reached, is too slow, or refuses to work."""


class StateFullError(StateDownError):
    """Redis has no memory left: it answers, but takes nothing new."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script of Redis, and the name that Redis gives it."""

    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``scripts/NAME.lua``."""
        text = (Path(__file__).parent / "scripts" / f"{name}.lua").read_text()
        # Redis names scripts by SHA-1; nothing here rests on its strength.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], *arguments: Any) -> Call:
        """Return the command that runs it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class Circuit:
    """Lets nothing through for a while after several failures in a row, then one probe.

    Args:
        failures: in a row, after which it opens.
        open_seconds: for how long at first; doubles with each failed probe, with jitter.
    """

    def __init__(self, failures: int = _FAILURES, open_seconds: float = _OPEN_SECONDS) -> None:
        self._limit = failures
        self._first_seconds = open_seconds
        self._seconds = open_seconds
        self._failures = 0
        self._closed_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused without trying."""
        return self._failures >= self._limit

    def enter(self) -> bool:
        """Ask to make a call; return whether it is the probe.

        Raises:
            StateDownError: it is open.
        """
        if not self.is_open:
            return False
        wait = self._closed_at - time.monotonic()
        if wait > 0 or self._probing:
            raise StateDownError(f"Redis does not answer: next try in {max(wait, 0.0):.2f} s")
        self._probing = True
        return True

    def leave(self, *, probe: bool) -> None:
        """Say that a call ended, with an outcome or without one.

        A probe without one was given up before Redis answered, by a caller with little time:
        were the next caller to try at once, all of them would wait in vain, one after another.
        """
        if not probe:
            return
        self._probing = False
        if self.is_open and self._closed_at <= time.monotonic():
            self._close(self._first_seconds)

    def succeed(self) -> None:
        """Say that Redis answered."""
        self._failures = 0
        self._seconds = self._first_seconds

    def fail(self, *, probe: bool) -> None:
        """Say that it did not."""
        self._failures += 1
        if not self.is_open or (self._failures > self._limit and not probe):
            return
        self._close(self._seconds)
        self._seconds = min(2 * self._seconds, _OPEN_SECONDS_MOST)

    def _close(self, seconds: float) -> None:
        # Jitter, so that the processes do not all come back at once.
        self._closed_at = time.monotonic() + seconds * random.uniform(0.75, 1.25)


class Door:
    """Sends commands, any number in one round trip per server. For one event loop.

    Every command sent through here may be repeated without harm.

    Args:
        url: see ``clients``.
        timeout_seconds: limit of one answer; a call makes up to three attempts.

    Raises:
        AddressError: the address cannot be understood.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._client = make_client(url, Limits(timeout_seconds, _CONNECTIONS))
        self._lane = Lane(url, timeout_seconds=timeout_seconds) if Lane.serves(url) else None
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._timeout_seconds = timeout_seconds
        self._circuit = Circuit()
        self._forgotten_at = 0.0
        self.reached = False
        """Whether Redis has ever answered."""
        # Once: to ask whether it is one takes most of a microsecond.
        self.clustered = isinstance(self._client, RedisCluster)
        """Whether keys of different slots live on different servers."""

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open: calls fail at once."""
        return self._circuit.is_open

    async def close(self) -> None:
        """Close all connections."""
        if self._lane is not None:
            self._lane.close()
        await close_client(self._client)

    async def call(
        self, calls: Sequence[Call], *, scripts: Sequence[Script] = (), quick: bool = False
    ) -> list[Any]:
        """Send commands and return their answers, one each.

        Args:
            calls: commands; in a cluster, the keys of one command share a slot.
            scripts: those that are called, should a server not know them yet.
            quick: few and small, with answers as they come: they share a connection.

        Raises:
            StateFullError: a command was refused for want of memory.
            StateDownError: no answer in time, or an error as one. Some of the commands may
                have been carried out.
        """
        if not calls:
            return []
        for attempt in range(1, _ATTEMPTS + 1):
            probe = self._circuit.enter()
            try:
                answers = await self._attempt(calls, scripts, quick=quick)
            except _PASSING as exc:
                self._circuit.fail(probe=probe)
                self._show()
                await self._forget_topology()
                if attempt == _ATTEMPTS or self._circuit.is_open or isinstance(exc, _LASTING):
                    metrics.REDIS_FAILURES.labels(type(exc).__name__).inc()
                    raise _down(exc) from exc
                metrics.REDIS_RETRIES.inc()
            except RedisError as exc:
                # It answers: no reason to keep others from it.
                self._circuit.succeed()
                metrics.REDIS_FAILURES.labels(type(exc).__name__).inc()
                raise _down(exc) from exc
            else:
                self._circuit.succeed()
                self._show()
                self.reached = True
                return answers
            finally:
                self._circuit.leave(probe=probe)
            # Full jitter: those who failed together do not try again together.
            await asyncio.sleep(random.uniform(0, _BACKOFF_SECONDS * 4**attempt))
        raise AssertionError("unreachable")  # pragma: no cover

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Walk over the keys of all servers, a few hundred at a time; some may come twice."""
        with translated():
            if isinstance(self._client, RedisCluster):
                await self._client.initialize()
                for node in self._client.get_primaries():
                    async for keys in self._scan(pattern, target_nodes=node):
                        yield keys
            else:
                async for keys in self._scan(pattern):
                    yield keys

    async def _scan(self, pattern: str, **target: Any) -> AsyncIterator[list[bytes]]:
        cursor = 0
        while True:
            answer = await self._client.execute_command(
                "SCAN", cursor, "MATCH", pattern, "COUNT", 500, **target
            )
            # A cluster answers by node.
            [(cursor, keys)] = answer.values() if isinstance(answer, dict) else [answer]
            cursor = next(iter(cursor.values())) if isinstance(cursor, dict) else cursor
            if keys:
                yield keys
            if not int(cursor):
                return

    async def _attempt(
        self, calls: Sequence[Call], scripts: Sequence[Script], *, quick: bool
    ) -> list[Any]:
        if quick and self._lane is not None:
            answers = await self._lane.send(calls)
        else:
            async with self._slot():
                answers = await self._send(calls)
        missing = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
        if missing:
            # A fresh or restarted server: two more round trips, once. What ran is not repeated.
            async with self._slot():
                for script in scripts:
                    await self._load(script)
                again = await self._send([calls[i] for i in missing])
            for index, answer in zip(missing, again, strict=True):
                answers[index] = answer
        return _without_errors(answers)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        # Waiting for a connection is waiting for Redis.
        if self._slots.locked():
            await asyncio.wait_for(self._slots.acquire(), self._timeout_seconds)
        else:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        with self._stumbling():
            pipeline = self._client.pipeline(transaction=False)
            async with pipeline as pipe:
                for call in calls:
                    pipe.execute_command(*call)
                return await pipe.execute(raise_on_error=False)

    async def _load(self, script: Script) -> None:
        if isinstance(self._client, RedisCluster):
            everywhere = RedisCluster.PRIMARIES
            with self._stumbling():
                await self._client.execute_command(
                    "SCRIPT LOAD", script.text, target_nodes=everywhere
                )
        else:
            await self._send([("SCRIPT LOAD", script.text)])

    @contextmanager
    def _stumbling(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError):
            raise
        except Exception as exc:
            if not self.clustered:
                raise
            # While a cluster fails over, redis-py closes connections that other tasks are about
            # to use, and they stumble in many ways (AttributeError on a writer that is None).
            raise ConnectionError(f"the client of the cluster stumbled: {exc!r}") from exc

    async def _forget_topology(self) -> None:
        now = time.monotonic()
        if isinstance(self._client, RedisCluster) and now > self._forgotten_at + _FORGET_SECONDS:
            self._forgotten_at = now
            # The next attempt asks anew who holds which slots.
            with suppress(Exception):
                await self._client.aclose()

    def _show(self) -> None:
        metrics.REDIS_CIRCUIT_OPEN.set(float(self._circuit.is_open))


def _without_errors(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


@contextmanager
def translated() -> Iterator[None]:
    """Turn the library's errors into :class:`StateDownError`."""
    try:
        yield
    except (*_PASSING, RedisError) as exc:
        raise _down(exc) from exc


def _down(exc: Exception) -> StateDownError:
    text = str(exc) or type(exc).__name__
    if isinstance(exc, OutOfMemoryError) or (isinstance(exc, ResponseError) and "OOM" in text):
        return StateFullError(f"Redis is full: {text}")
    return StateDownError(f"Redis does not answer: {text}")
