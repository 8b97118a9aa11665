"""Connections that come together are shared out, and none is left out."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
import uvloop
from pydantic import SecretStr

from service import accepting
from service.__main__ import _serve
from service.accepting import SharingLoop, SharingServer
from service.settings import Settings

from .listening import Worker, callers, greetings, run, serve


class Listener(socket.socket):
    """Counts looks, and may fail some of them."""

    def __init__(self, other: socket.socket, faults: Callable[[int], OSError | None]) -> None:
        super().__init__(fileno=other.dup().detach())
        self.setblocking(False)
        self.looks, self.accepted = 0, 0
        self._faults = faults

    def accept(self) -> tuple[socket.socket, object]:
        self.looks += 1
        if fault := self._faults(self.looks):
            raise fault
        found = super().accept()
        self.accepted += 1
        return found


def test_a_worker_leaves_the_next_connection_to_others(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it be awake and the others not yet."""
    monkeypatch.setattr(accepting, "_LOOK_AWAY_SECONDS", 5.0)

    async def share() -> str:
        first = await serve(listener, "a")
        found = await greetings(waiting[:1])
        for _ in range(10):
            await asyncio.sleep(0)
        second = await serve(listener, "b")
        found += await greetings(waiting[1:])
        first.close()
        second.close()
        return found

    with callers(listener, 2) as waiting:
        assert run(share) == "ab"


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
        greeted = Counter(run(share))

    assert greeted.total() == count
    assert 3 * min(greeted["a"], greeted["b"]) >= count


def test_a_worker_alone_takes_all_that_come(listener: socket.socket) -> None:
    """Also those that come when it has looked away, and when it has long looked again."""

    async def take() -> list[str]:
        server = await serve(listener, "a")
        found = []
        for pause in (0.0, 0.0, 0.001, 0.05, 0.05):
            await asyncio.sleep(pause)
            with callers(listener, 5) as more:
                found.append(await greetings(more))
        server.close()
        return found

    assert run(take) == 5 * ["a" * 5]


async def _served(sock: Listener, waiting: list[socket.socket]) -> str:
    with closing(SharingServer(asyncio.get_running_loop(), sock, lambda: Worker("a"))):
        return await greetings(waiting)


def test_as_long_as_many_wait_more_are_taken_at_a_time(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, 1, 2, 2, 3, 3 and so on are 100 in 20 looks."""
    looked = []
    look = SharingServer._look
    monkeypatch.setattr(SharingServer, "_look", lambda self: (looked.append(0), look(self)))
    sock = Listener(listener, lambda _: None)

    with callers(listener, 100) as waiting:
        assert run(lambda: _served(sock, waiting)) == "a" * 100

    assert 19 <= len(looked) <= 22


def test_a_caller_who_left_keeps_nobody_waiting(listener: socket.socket) -> None:
    """Of a hundred looks at the queue every third finds one that has left."""
    gone = ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
    sock = Listener(listener, lambda look: gone if look % 3 == 0 else None)

    with callers(listener, 40) as waiting:
        assert run(lambda: _served(sock, waiting)) == "a" * 40

    assert sock.accepted == 40


@pytest.mark.parametrize(
    "fault", [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "whatever")]
)
def test_after_a_fault_it_tries_again(
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: OSError,
) -> None:
    """In a while: the socket stays ready, and a loop that looked at once would do nothing else."""
    monkeypatch.setattr(accepting, "_RETRY_SECONDS", 0.05)
    sock = Listener(listener, lambda look: fault if look < 3 else None)

    with callers(listener, 3) as waiting:
        assert run(lambda: _served(sock, waiting)) == "aaa"

    assert caplog.text.count(f"connections cannot be taken, and wait for 0 s: {fault}") == 2


def test_a_caller_who_left_just_now_harms_nobody(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed, the next one is served."""
    faults = [OSError(errno.EINVAL, "Invalid argument")]

    async def connect(self: SharingLoop, *arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return await uvloop.Loop.connect_accepted_socket(self, *arguments)

    monkeypatch.setattr(SharingLoop, "connect_accepted_socket", connect, raising=False)

    async def take() -> tuple[str, str]:
        server = await serve(listener, "a")
        found = await greetings(waiting[:1]), await greetings(waiting[1:])
        server.close()
        return found

    with callers(listener, 2) as waiting:
        assert run(take) == ("", "a")


def test_a_closed_server_takes_nothing_and_leaves_what_it_took(listener: socket.socket) -> None:
    async def close() -> str:
        first = await serve(listener, "a")
        with callers(listener, 1) as before:
            found = await greetings(before)
            first.close()
            await first.wait_closed()
            with callers(listener, 1) as after:
                # Long enough for it to look again, were it not closed.
                await asyncio.sleep(0.01)
                with pytest.raises(BlockingIOError):
                    before[0].recv(1)
                second = await serve(listener, "b")
                found += await greetings(after)
                second.close()
        return found

    assert run(close) == "ab"
    assert not Worker.told_to_end


def test_a_connection_that_was_just_taken_is_told_of_the_end(listener: socket.socket) -> None:
    """The server tells those that it knows, and does not know this one yet."""

    async def end() -> str:
        server = cast("SharingServer", await serve(listener, "a"))
        server._look()
        server.close()
        found = await greetings(waiting)
        await server.wait_closed()
        return found

    with callers(listener, 1) as waiting:
        assert run(end) == "a"
    assert Worker.told_to_end == ["a"]


def test_a_socket_of_its_own_is_served_as_ever() -> None:
    async def take() -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Worker("a"), "127.0.0.1", 0)
        with callers(server.sockets[0], 3) as waiting:
            found = await greetings(waiting)
        server.close()
        return found

    assert run(take) == "aaa"


@pytest.mark.parametrize(("workers", "loop"), [(1, "auto"), (2, "service.accepting:SharingLoop")])
def test_several_workers_share(
    workers: int, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda *_, **settings: given.update(settings))
    # Set for the workers; taken back at the end.
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    url = SecretStr("redis://127.0.0.1:1")

    _serve(Settings(model_store=tmp_path, data_dir=tmp_path, redis_url=url, workers=workers))

    assert (given["workers"], given["loop"]) == (workers, loop)
