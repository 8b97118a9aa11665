"""Connections that come together are shared out, and none is left out."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import ClassVar, TypeVar, cast

import pytest

from service import accepting
from service.accepting import SharingLoop, SharingServer

_T = TypeVar("_T")


class Worker(asyncio.Protocol):
    """Greets every connection with its name."""

    transports: ClassVar[set[asyncio.WriteTransport]] = set()

    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.WriteTransport", transport)
        stream.write(self._name.encode())
        self.transports.add(stream)


def run(work: Callable[[], Awaitable[_T]]) -> _T:
    async def with_end() -> _T:
        try:
            return await asyncio.wait_for(work(), 30)
        finally:
            while Worker.transports:
                Worker.transports.pop().abort()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=SharingLoop) as runner:
        return runner.run(with_end())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as sock:
        yield sock


async def serve(listener: socket.socket, name: str) -> asyncio.AbstractServer:
    """Serve on a socket of its own that takes from the same queue, as another process has it."""
    loop = asyncio.get_running_loop()
    own = listener.dup()
    server: asyncio.AbstractServer = await loop.create_server(
        lambda: Worker(name), sock=own, backlog=1_024
    )
    return server


@contextmanager
def callers(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """Connect at once."""
    address = listener.getsockname()
    sockets = [socket.create_connection(address) for _ in range(count)]
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


async def greetings(sockets: list[socket.socket]) -> str:
    """Wait until every caller has been greeted; by whom."""
    loop = asyncio.get_running_loop()
    for sock in sockets:
        sock.setblocking(False)
    return "".join([(await loop.sock_recv(sock, 1)).decode() for sock in sockets])


@pytest.mark.parametrize("count", [2, 8, 16, 100])
def test_two_workers_share_callers_who_came_in_one_instant(
    listener: socket.socket, count: int
) -> None:
    async def share() -> str:
        servers = [await serve(listener, name) for name in "ab"]
        found = await greetings(waiting)
        for server in servers:
            server.close()
        return found

    with callers(listener, count) as waiting:
        names = run(share)

    assert len(names) == count
    assert 3 * min(names.count("a"), names.count("b")) >= count


def test_a_worker_alone_takes_all_that_come(listener: socket.socket) -> None:
    """Also those that come when it has looked away."""

    async def take() -> list[str]:
        server = await serve(listener, "a")
        found = [await greetings(waiting)]
        for _ in range(3):
            with callers(listener, 5) as more:
                found.append(await greetings(more))
        server.close()
        return found

    with callers(listener, 300) as waiting:
        assert run(take) == ["a" * 300, *3 * ["a" * 5]]


def test_a_closed_server_takes_nothing_and_leaves_what_it_took(listener: socket.socket) -> None:
    async def close() -> str:
        first = await serve(listener, "a")
        with callers(listener, 1) as before:
            found = await greetings(before)
            first.close()
            await first.wait_closed()
            with callers(listener, 1) as after:
                await asyncio.sleep(0.01)
                with pytest.raises(BlockingIOError):
                    before[0].recv(1)
                second = await serve(listener, "b")
                found += await greetings(after)
                second.close()
        return found

    assert run(close) == "ab"


class Full(socket.socket):
    """Has no room for a connection, the first times."""

    times = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_room_it_tries_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_RETRY_SECONDS", 0.01)

    async def take() -> str:
        full = Full(fileno=listener.dup().detach())
        full.setblocking(False)
        with closing(SharingServer(asyncio.get_running_loop(), full, lambda: Worker("a"))):
            return await greetings(waiting)

    with callers(listener, 3) as waiting:
        assert run(take) == "aaa"
    assert caplog.text.count("no room for another connection") == 2


def test_a_socket_of_its_own_is_served_as_ever() -> None:
    async def take() -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Worker("a"), "127.0.0.1", 0)
        with callers(server.sockets[0], 3) as waiting:
            found = await greetings(waiting)
        server.close()
        return found

    assert run(take) == "aaa"
