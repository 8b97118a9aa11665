"""An answer leaves in one piece, and nothing that was written stays behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import httpx
import msgpack
import pytest
import uvloop

from service.http_protocol import JoinedTransport


class Sink(asyncio.Protocol):
    """Hands on what came in one piece."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        self.pieces.put_nowait(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pieces.put_nowait(b"")


async def test_head_and_body_go_together_and_the_rest_by_the_next_turn() -> None:
    """Two writes are one; a lone one is sent all the same; closing sends what is kept."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, sink = await loop.create_unix_connection(Sink, sock=far)
    plain, _ = await loop.create_unix_connection(asyncio.Protocol, sock=near)
    joined = JoinedTransport(plain)
    joined.write(b"head")
    assert plain.get_write_buffer_size() == 0
    joined.write(b"body")
    assert await sink.pieces.get() == b"headbody"
    joined.write(b"alone")
    assert await sink.pieces.get() == b"alone"
    joined.write(b"last")
    joined.close()

    assert await sink.pieces.get() == b"last"
    assert await sink.pieces.get() == b""
    assert joined.is_closing()


@pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_was_kept_for_a_caller_who_is_gone_is_dropped(
    loops: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Without an error that nobody could do anything about."""
    faults: list[object] = []

    async def hang_up() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        near, far = socket.socketpair()
        _, sink = await loop.create_unix_connection(Sink, sock=far)
        plain, gone = await loop.create_unix_connection(Sink, sock=near)
        joined = JoinedTransport(plain)
        plain.abort()
        assert await gone.pieces.get() == b""
        joined.write(b"head")
        assert await sink.pieces.get() == b""
        joined.write(b"head")
        joined.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(hang_up())

    assert faults == []


def test_answers_of_a_connection_keep_their_order(client: httpx.Client) -> None:
    """Requests sent at once, long and short, fast and through the framework."""
    port = client.base_url.port
    lines = [
        b"GET /health/live",
        b"GET /nowhere",
        b"POST /score",
        b"GET /docs",
        b"GET /health/live",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for line in lines:
            body = msgpack.packb({}) if line.startswith(b"POST") else b""
            head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
        answer = b""
        # The last one's body may still be on its way.
        while answer.count(b"HTTP/1.1 ") < len(lines):
            answer += connection.recv(1 << 16)

    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 400, 200, 200]
