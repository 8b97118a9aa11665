"""A small HTTP client that measures: closed loop, or open loop at a fixed rate of arrivals.

It sends requests that were made beforehand and reads no more of an answer than its status and
length, so that what it costs is little and the same for every server.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt

_BETWEEN_CONNECTIONS = 0.002
_SEPARATOR = b"\r\n\r\n"


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Make a request's bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Measured:
    """Answers to a load.

    Attributes:
        latencies: [n] seconds, of answers with status 200, in the order of their arrival.
        statuses: how many answers of each status.
        seconds: from the first request to the last answer.
    """

    latencies: npt.NDArray[np.float64]
    statuses: dict[int, int]
    seconds: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds

    def percentile_us(self, share: float) -> float:
        """Latency in microseconds that a share (0 to 100) of good answers stays below."""
        return float(np.percentile(self.latencies, share) * 1e6) if len(self.latencies) else np.nan


class Connection(asyncio.Protocol):
    """One request at a time on one connection."""

    def __init__(self, on_answer: Callable[[Connection, int], None]) -> None:
        self._on_answer = on_answer
        self._buffer = bytearray()
        self._wanted = -1
        self._status = 0
        self._body_at = 0
        self._chunked = False
        self.transport: asyncio.Transport
        self.started = 0.0
        """When the request in flight was meant to start."""
        self.last_body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, started: float) -> None:
        """Send a request."""
        self.started = started
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._buffer += data
        if self._wanted < 0:
            end = self._buffer.find(_SEPARATOR)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._status = int(head[9:12])
            self._body_at = end + len(_SEPARATOR)
            at = head.find(b"content-length:")
            self._chunked = at < 0
            if self._chunked:
                # In chunks: the last one is empty.
                if self._buffer.endswith(b"0\r\n\r\n"):
                    self._wanted = len(self._buffer)
            else:
                length = head[at + 15 :].split(b"\r\n", 1)[0]
                self._wanted = self._body_at + int(length)
        if self._wanted < 0:
            return
        if len(self._buffer) >= self._wanted:
            body = bytes(self._buffer[self._body_at : self._wanted])
            self.last_body = _joined(body) if self._chunked else body
            self._buffer.clear()
            self._wanted = -1
            self._on_answer(self, self._status)


def _joined(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)


@dataclass(slots=True)
class _Run:
    requests: Sequence[bytes]
    done: asyncio.Future[None]
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    next: int = 0

    def take(self) -> bytes:
        request = self.requests[self.next % len(self.requests)]
        self.next += 1
        return request

    def note(self, connection: Connection, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:  # noqa: PLR2004
            self.latencies.append(time.perf_counter() - connection.started)


def closed_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    between: Sequence[bytes] = (),
) -> Measured:
    """Keep so many requests in flight.

    Args:
        port: of the server.
        requests: taken in turns.
        connections: each with one request in flight.
        seconds: to go on for.
        between: requests sent before each of them, in turns, that are not counted.
    """
    return asyncio.run(_closed(port, requests, connections, seconds, between))


async def _closed(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, between: Sequence[bytes]
) -> Measured:
    loop = asyncio.get_running_loop()
    run = _Run(requests, loop.create_future())
    begin = time.perf_counter()
    end = begin + seconds
    open_ones = connections
    preparing: set[Connection] = set()

    def go_on(connection: Connection) -> None:
        nonlocal open_ones
        now = time.perf_counter()
        if now >= end:
            open_ones -= 1
            if open_ones == 0 and not run.done.done():
                run.done.set_result(None)
            return
        if between and connection not in preparing:
            preparing.add(connection)
            connection.send(between[run.next % len(between)], now)
            return
        preparing.discard(connection)
        connection.send(run.take(), time.perf_counter())

    def answered(connection: Connection, status: int) -> None:
        if connection in preparing:
            if status != 200:  # noqa: PLR2004
                raise SystemExit(f"a request between was answered {status}")
        else:
            run.note(connection, status)
        go_on(connection)

    clients = [await _connect(port, answered) for _ in range(connections)]
    for client in clients:
        go_on(client)
    await run.done
    taken = time.perf_counter() - begin
    for client in clients:
        client.transport.abort()
    return Measured(np.array(run.latencies), run.statuses, taken)


def open_loop(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int = 128
) -> Measured:
    """Send requests at a fixed rate, whatever the server does.

    Latency counts from the moment a request was meant to be sent: waiting for a free
    connection, as a user would, is part of it.
    """
    return asyncio.run(_open(port, requests, rate, seconds, connections))


async def _open(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int
) -> Measured:
    loop = asyncio.get_running_loop()
    run = _Run(requests, loop.create_future())
    total = max(1, int(rate * seconds))
    idle: list[Connection] = []
    due: deque[float] = deque()
    answers = 0

    def answered(connection: Connection, status: int) -> None:
        nonlocal answers
        run.note(connection, status)
        answers += 1
        if answers == total:
            run.done.set_result(None)
        if due:
            connection.send(run.take(), due.popleft())
        else:
            idle.append(connection)

    clients = [await _connect(port, answered) for _ in range(connections)]
    idle.extend(clients)
    begin = time.perf_counter()
    for number in range(total):
        meant = begin + number / rate
        wait = meant - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 16 == 0:
            await asyncio.sleep(0)
        if idle:
            # As pools of connections do: the one that was used last.
            idle.pop().send(run.take(), meant)
        else:
            due.append(meant)
    await asyncio.wait_for(run.done, 60)
    taken = time.perf_counter() - begin
    for client in clients:
        client.transport.abort()
    return Measured(np.array(run.latencies), run.statuses, taken)


def one(port: int, request: bytes) -> tuple[int, bytes]:
    """Send one request; return its status and body."""

    async def ask() -> tuple[int, bytes]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        client = await _connect(port, lambda _, status: done.set_result(status))
        client.send(request, 0.0)
        status = await asyncio.wait_for(done, 60)
        client.transport.abort()
        return status, client.last_body

    return asyncio.run(ask())


async def _connect(port: int, on_answer: Callable[[Connection, int], None]) -> Connection:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Connection(on_answer), "127.0.0.1", port)
    # Callers do not connect in one instant: whichever worker of several woke first took them all.
    await asyncio.sleep(_BETWEEN_CONNECTIONS)
    return client
