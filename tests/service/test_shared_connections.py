"""Callers who come one after another are shared out by what each worker has open."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service import accepting
from service.open_connections import OpenConnections

from .listening import Worker, callers, greetings, run, serve


@contextmanager
def one_by_one(listener: socket.socket) -> Iterator[Callable[[], Awaitable[str]]]:
    """Connect when it is called, and wait for the greeting, and until nobody looks away any more."""
    with ExitStack() as stack:

        async def connect() -> str:
            found = await greetings(stack.enter_context(callers(listener, 1)))
            await asyncio.sleep(0.005)
            return found

        yield connect


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers see one another's connections."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.mark.usefixtures("shared")
def test_callers_who_come_one_by_one_are_shared_out(listener: socket.socket) -> None:
    """Nobody is busy, and one worker could be the first each time."""

    async def share() -> str:
        servers = [await serve(listener, name) for name in "ab"]
        with one_by_one(listener) as connect:
            found = "".join([await connect() for _ in range(16)])
        for server in servers:
            server.close()
        return found

    greeted = run(share)

    assert Counter(greeted) == {"a": 8, "b": 8}


@pytest.mark.usefixtures("shared")
def test_connections_that_ended_are_made_up_for(listener: socket.socket) -> None:
    """What counts is what is open, not what has come."""

    async def share() -> str:
        first = await serve(listener, "a")
        with one_by_one(listener) as connect:
            for _ in range(4):
                await connect()
        await asyncio.sleep(0.005)
        second = await serve(listener, "b")
        with one_by_one(listener) as connect:
            found = "".join([await connect() for _ in range(6)])
        first.close()
        second.close()
        return found

    assert Counter(run(share)) == {"a": 3, "b": 3}


@pytest.mark.usefixtures("shared")
def test_a_worker_with_more_leaves_most_of_a_stream_to_the_other(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it has just taken one, and the next is there before it looks again."""

    async def share() -> str:
        first = await serve(listener, "a")
        with one_by_one(listener) as connect:
            for _ in range(16):
                await connect()
            monkeypatch.setattr(accepting, "_LOOK_AWAY_SECONDS", 0.05)
            second = await serve(listener, "b")
            with ExitStack() as stack:
                sockets = []
                for _ in range(12):
                    sockets += stack.enter_context(callers(listener, 1))
                    await asyncio.sleep(0.02)
                found = await greetings(sockets)
        first.close()
        second.close()
        return found

    greeted = Counter(run(share))

    assert greeted.total() == 12
    assert greeted["b"] >= 7


@pytest.mark.usefixtures("shared")
def test_a_connection_that_ended_is_not_kept(listener: socket.socket) -> None:
    """Nothing is left for a collection of garbage, which may be far off."""
    made: list[weakref.ref[Worker]] = []

    async def come_and_go() -> None:
        def worker() -> Worker:
            protocol = Worker("a")
            made.append(weakref.ref(protocol))
            return protocol

        loop = asyncio.get_running_loop()
        server = await loop.create_server(worker, sock=listener.dup(), backlog=512)
        with callers(listener, 3) as sockets:
            await greetings(sockets)
            while Worker.transports:
                Worker.transports.pop().abort()
        await asyncio.sleep(0.02)
        server.close()

    gc.disable()
    try:
        run(come_and_go)
        assert [ref() for ref in made] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.usefixtures("shared")
def test_what_a_worker_with_fewer_does_not_take_is_taken(
    listener: socket.socket, tmp_path: Path
) -> None:
    """It may be busy, and for long."""
    OpenConnections(tmp_path / "connections")

    async def take() -> str:
        server = await serve(listener, "a")
        with one_by_one(listener) as connect:
            found = "".join([await connect() for _ in range(5)])
        with callers(listener, 20) as more:
            found += await greetings(more)
        server.close()
        return found

    assert run(take) == "a" * 25


@pytest.mark.usefixtures("shared")
def test_without_the_file_connections_are_taken_all_the_same(
    listener: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says what is amiss."""
    (tmp_path / "connections").mkdir()

    async def take() -> str:
        server = await serve(listener, "a")
        with one_by_one(listener) as connect:
            found = await connect()
        server.close()
        return found

    with caplog.at_level(logging.WARNING):
        assert run(take) == "a"
    assert "may all come to one" in caplog.text
