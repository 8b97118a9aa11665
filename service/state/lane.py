"""One connection that all requests of a process share: what is asked at once goes out together.

redis-py takes a connection from a pool for every call, and several times longer than Redis
needs to answer. Here commands of all callers go down one socket and answers are dealt out in
order. For one server by TCP or unix socket; everything else goes through redis-py.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004  the library's
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

_ERRORS: Final[dict[str, type[Exception]]] = {
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "WRONGPASS": AuthenticationError,
}
_OPTIONS: Final = {"host", "port", "path", "db", "username", "password", "connection_class"}


class Lane:
    """A connection that is opened when it is needed, and again after it broke.

    Args:
        url: ``redis://`` or ``unix://``, without options.
        timeout_seconds: limit of connecting, and of one answer.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._target: dict[str, Any] = dict(parse_url(url))
        self._timeout_seconds = timeout_seconds
        self._protocol: _Protocol | None = None
        self._opening: asyncio.Task[_Protocol] | None = None

    @staticmethod
    def serves(url: str) -> bool:
        """Whether an address is one for a lane."""
        if urlsplit(url).scheme not in ("redis", "unix"):
            return False
        return set(parse_url(url)) <= _OPTIONS

    def begin(self, calls: Sequence[tuple[Any, ...]]) -> asyncio.Future[list[Any]] | None:
        """Send commands at once, and return what will hold that which :meth:`send` returns or raises.

        Nothing where the connection is not open: nothing was sent.
        """
        protocol = self._protocol
        if protocol is None or protocol.closed:
            return None
        return protocol.begin(calls, self._timeout_seconds)

    async def send(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands and return their answers; an error of Redis stands in its place.

        Raises:
            ConnectionError: the connection broke, or could not be made.
            TimeoutError: no answer in time. The connection is given up then: what it would
                still bring belongs to nobody.
        """
        begun = self.begin(calls)
        if begun is None:
            begun = (await self._open()).begin(calls, self._timeout_seconds)
        return await begun

    def close(self) -> None:
        """Close the connection."""
        if self._opening is not None:
            self._opening.cancel()
        if self._protocol is not None:
            self._protocol.abort("closed")

    async def _open(self) -> _Protocol:
        # One attempt for all who wait: one after the other they would wait for ever longer.
        if self._opening is None:
            self._opening = asyncio.create_task(self._opened())
            self._opening.add_done_callback(self._end_opening)
        return await asyncio.shield(self._opening)

    def _end_opening(self, task: asyncio.Task[_Protocol]) -> None:
        self._opening = None
        if not task.cancelled():
            # Those who waited may all have hung up: nobody else has looked.
            task.exception()

    async def _opened(self) -> _Protocol:
        async with asyncio.timeout(self._timeout_seconds):
            protocol = await self._connected()
            try:
                await self._greet(protocol)
            except BaseException:
                protocol.abort("not let in")
                raise
        self._protocol = protocol
        return protocol

    async def _greet(self, protocol: _Protocol) -> None:
        greetings = self._greetings()
        if greetings:
            for answer in await protocol.begin(greetings, self._timeout_seconds):
                if isinstance(answer, Exception):
                    raise answer

    async def _connected(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        path = self._target.get("path")
        if path:
            _, protocol = await loop.create_unix_connection(_Protocol, str(path))
        else:
            host = str(self._target.get("host", "localhost"))
            port = int(self._target.get("port", 6379))
            transport, protocol = await loop.create_connection(_Protocol, host, port)
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return protocol

    def _greetings(self) -> list[tuple[Any, ...]]:
        greetings: list[tuple[Any, ...]] = []
        name, password = self._target.get("username"), self._target.get("password")
        if password:
            greetings.append(("AUTH", name, password) if name else ("AUTH", password))
        if self._target.get("db"):
            greetings.append(("SELECT", self._target["db"]))
        return greetings


class _Waiting(NamedTuple):
    """Who waits for how many answers, and until when by the loop's clock."""

    future: asyncio.Future[list[Any]]
    wanted: int
    deadline: float


class _Protocol(asyncio.Protocol):
    """Deals answers out to those who wait, in the order in which they asked."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=_error)
        self._waiting: deque[_Waiting] = deque()
        self._answers: list[Any] = []
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while self._waiting:
                answer = self._reader.gets()
                if answer is False:
                    return
                self._answers.append(answer)
                future, wanted, _ = self._waiting[0]
                if len(self._answers) == wanted:
                    self._waiting.popleft()
                    answers, self._answers = self._answers, []
                    # Whoever hung up has no use for it.
                    if not future.done():
                        future.set_result(answers)
        except hiredis.ProtocolError as exc:
            self.abort(f"Redis speaks nonsense: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(str(exc) if exc else "Redis closed the connection")

    def abort(self, reason: str) -> None:
        """Give the connection up, and tell all who wait."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(ConnectionError(reason))

    def begin(
        self, calls: Sequence[tuple[Any, ...]], timeout_seconds: float
    ) -> asyncio.Future[list[Any]]:
        """Send commands; their answers come with the future."""
        if self.closed or self._transport is None:
            raise ConnectionError("the connection broke")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        # Packed before anyone waits: what cannot be packed must not leave a waiter behind.
        packed = b"".join([hiredis.pack_command(_plain(call)) for call in calls])
        deadline = loop.time() + timeout_seconds
        # One timer for all who wait: to set and cancel one is dear, and none but the oldest matters.
        # It runs on when a caller hangs up: of a connection that hangs nobody else would know.
        if deadline < self._due:
            self._look_at(deadline)
        self._waiting.append(_Waiting(future, len(calls), deadline))
        self._transport.write(packed)
        return future

    def _look_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_at(due, self._look_at_oldest)

    def _look_at_oldest(self) -> None:
        self._timer, self._due = None, math.inf
        if not self._waiting:
            return
        future, _, deadline = self._waiting[0]
        if asyncio.get_running_loop().time() < deadline:
            self._look_at(deadline)
            return
        if not future.done():
            future.set_exception(TimeoutError("no answer in time"))
        self.abort("an earlier answer did not come in time")


def _error(text: str) -> Exception:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)


def _plain(call: tuple[Any, ...]) -> tuple[Any, ...]:
    # The packer takes a command of two words for one.
    return (*call[0].split(), *call[1:]) if " " in call[0] else call
