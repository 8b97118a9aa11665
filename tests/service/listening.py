"""Workers in one process that listen as several do, and callers who say who greeted them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar, cast

import uvicorn

from service.accepting import SharingLoop

from .conftest import wait_for

_T = TypeVar("_T")


class Worker(asyncio.Protocol):
    """Greets every connection with its name."""

    transports: ClassVar[set[asyncio.WriteTransport]] = set()
    told_to_end: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.WriteTransport", transport)
        stream.write(self._name.encode())
        self.transports.add(stream)

    def shutdown(self) -> None:
        """End, as uvicorn's protocols do."""
        self.told_to_end.append(self._name)


def run(work: Callable[[], Awaitable[_T]]) -> _T:
    """Run on the loop; nothing may go wrong behind the back of what is awaited."""
    faults: list[dict[str, Any]] = []

    async def with_end() -> _T:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        try:
            return await asyncio.wait_for(work(), 30)
        finally:
            while Worker.transports:
                Worker.transports.pop().abort()
            await asyncio.sleep(0)

    Worker.told_to_end.clear()
    with asyncio.Runner(loop_factory=SharingLoop) as runner:
        found = runner.run(with_end())
    assert not faults
    return found


async def serve(listener: socket.socket, name: str) -> asyncio.AbstractServer:
    """Serve on a socket of its own that takes from the same queue, as another process has it."""
    loop = asyncio.get_running_loop()
    server: asyncio.AbstractServer = await loop.create_server(
        lambda: Worker(name), sock=listener.dup(), backlog=512
    )
    return server


@contextmanager
def callers(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    """Connect at once."""
    address = listener.getsockname()
    sockets = [socket.create_connection(address, timeout=10) for _ in range(count)]
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


@contextmanager
def serving_app(
    app: object, *, http: type[asyncio.Protocol], idle_seconds: int = 60, lifespan: str = "off"
) -> Iterator[int]:
    """Serve an app with uvicorn in a thread; the port."""
    config = uvicorn.Config(
        cast("Any", app),
        http=cast("Any", http),
        lifespan=cast("Any", lifespan),
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=idle_seconds,
    )
    server = uvicorn.Server(config)
    waiting = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([waiting],))
    thread.start()
    try:
        # Until then nobody takes from the queue.
        wait_for(lambda: server.started or lifespan == "off")
        yield waiting.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def request(path: str, *, body: bytes = b"", version: str = "1.1", more: str = "") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def answers(connection: socket.socket, count: int, *, ends: tuple[bytes, ...]) -> list[bytes]:
    """Read so many answers, each with one of these ends; of a connection that ends sooner fewer."""
    answer = b""
    while answer.count(b"HTTP/1.1 ") < count or not answer.endswith(ends):
        piece = connection.recv(1 << 16)
        if not piece:
            break
        answer += piece
    return answer.split(b"HTTP/1.1 ")[1:]
