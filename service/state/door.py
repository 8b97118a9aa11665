"""The one door to Redis: timeouts, and retries with jitter."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
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
from service.state.circuit import Circuit, StateDownError
from service.state.clients import Limits, close_client, make_client
from service.state.lane import Lane

Call = tuple[Any, ...]
"""A command and its arguments."""

_ATTEMPTS: Final = 3
_BACKOFF_SECONDS: Final = 0.02
_CONNECTIONS: Final = 64
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


class StateFullError(StateDownError):
    """Redis has no memory left: it answers, but takes nothing new."""


@dataclass(frozen=True, slots=True)
class Question:
    """Commands that are on their way already, if anything can be sent.

    Attributes:
        calls: the commands.
        begun: what their answers will come with; nothing while the circuit is open.
    """

    calls: Sequence[Call]
    begun: asyncio.Future[list[Any]] | None

    @property
    def is_sent(self) -> bool:
        """Whether the commands have left; not where a task sends them in the loop's next turn."""
        return self.begun is not None and not isinstance(self.begun, asyncio.Task)

    def when_answered(self, call: Callable[[object], None]) -> None:
        """Have something called in the turn after the answers to what is sent came, or failed to."""
        if self.begun is None:
            raise AssertionError("nothing is sent")
        self.begun.add_done_callback(call)

    def drop(self) -> None:
        """Say that nobody waits for the answers any more."""
        if self.begun is not None and not self.begun.cancel() and not self.begun.cancelled():
            # Looked at, lest the loop report an error that nobody saw.
            self.begun.exception()


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
        self.asks_at_once = self._lane is not None
        """Whether questions are usually sent at once, see :attr:`Question.is_sent`."""

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open: calls fail at once."""
        return self._circuit.is_open

    async def close(self) -> None:
        """Close all connections."""
        if self._lane is not None:
            self._lane.close()
        await close_client(self._client)

    def ask(self, calls: Sequence[Call]) -> Question:
        """Send few and small commands now; :meth:`answer` waits for what comes of them.

        A task would send them no sooner than in the loop's next turn, and takes a turn more to
        end. Where no connection is shared, or it is yet to be made, it takes one all the same.
        """
        if self._circuit.is_open:
            return Question(calls, None)
        begun = None if self._lane is None else self._lane.begin(calls)
        return Question(calls, begun or asyncio.create_task(self._attempt(calls, (), quick=True)))

    async def answer(self, question: Question) -> list[Any]:
        """Return the answers to a question; as :meth:`call`, its first attempt begun already.

        Raises:
            StateFullError: a command was refused for want of memory.
            StateDownError: no answer in time, or an error as one.
        """
        return await self.call(question.calls, quick=True, begun=question.begun)

    def answer_now(self, question: Question) -> list[Any] | None:
        """Return the answers to a question if they are here and there is no error among them."""
        begun = question.begun
        if begun is None or not begun.done() or begun.cancelled():
            return None
        if (error := begun.exception()) is not None:
            # Who asks again finds the circuit open when it is time.
            if isinstance(error, _PASSING):
                self._circuit.fail(probe=False)
                self._show()
            return None
        answers = begun.result()
        for answer in answers:
            if isinstance(answer, Exception):
                return None
        was_open = self._circuit.is_open
        self._circuit.succeed()
        if was_open:
            self._show()
        self.reached = True
        return answers

    async def call(
        self,
        calls: Sequence[Call],
        *,
        scripts: Sequence[Script] = (),
        quick: bool = False,
        begun: Awaitable[list[Any]] | None = None,
    ) -> list[Any]:
        """Send commands and return their answers, one each.

        Args:
            calls: commands; in a cluster, the keys of one command share a slot.
            scripts: those that are called, should a server not know them yet.
            quick: few and small, with answers as they come: they share a connection.
            begun: the first attempt, where it is on its way.

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
                if begun is None:
                    answers = await self._attempt(calls, scripts, quick=quick)
                else:
                    answers = _without_errors(await begun)
            except _PASSING as exc:
                begun = None
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
