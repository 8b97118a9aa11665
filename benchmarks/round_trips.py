"""A proxy before Redis that sees what is asked, and counts in how many round trips."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import hiredis

_STEP = 1 << 20


class Asked(NamedTuple):
    """A command.

    Attributes:
        trip: number of the connection, and of the round trip on it: a command that was sent
            before any answer to the one before came through is of the same.
        command: name and arguments.
    """

    trip: tuple[int, int]
    command: list[bytes]

    def has(self, words: tuple[bytes, ...]) -> bool:
        """Whether one of the arguments begins with one of these words."""
        return any(part.startswith(words) for part in self.command)


class CountingProxy:
    """Passes bytes between a client and Redis, both on unix sockets.

    Args:
        target: socket of Redis.
        quiet_seconds: how long a client that waits for an answer is held at most, see :meth:`hold`.
    """

    def __init__(self, target: Path, *, quiet_seconds: float) -> None:
        self._target = target
        self._quiet_seconds = quiet_seconds
        self._asked: list[Asked] = []
        self._connections = 0
        self._hold: tuple[int, tuple[bytes, ...]] = (0, ())
        self._more = asyncio.Event()

    def forget(self) -> None:
        """Begin to count anew."""
        self._asked = []

    def hold(self, commands: int, *words: bytes) -> None:
        """Begin to count anew; answer none until so many commands with these words have come.

        A client that sends them all at once is done in one round trip; one that waits for an
        answer before it goes on gets it after a while, and needs more than one.
        """
        self._asked = []
        self._hold = (commands, words)

    def commands(self, *words: bytes) -> int:
        """Return how many commands had one of these words."""
        return sum(asked.has(words) for asked in self._asked)

    def round_trips(self, *words: bytes) -> int:
        """Return how many round trips the commands with these words took."""
        return len({asked.trip for asked in self._asked if asked.has(words)})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        there, back = await asyncio.open_unix_connection(self._target)
        self._connections += 1
        connection = _Connection(self._connections)
        try:
            # Ended together with the loop: asyncio would ask a cancelled task for its exception, and
            # print that there is none.
            with suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._ask(reader, back, connection))
                    group.create_task(self._answer(there, writer, connection))
        finally:
            back.close()
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        parser = hiredis.Reader()
        with suppress(OSError):
            while data := await reader.read(_STEP):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if connection.answered:
                        connection.trip, connection.answered = connection.trip + 1, False
                    self._asked.append(Asked((connection.number, connection.trip), command))
                self._more.set()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_STEP):
                await self._held()
                connection.answered = True
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _held(self) -> None:
        wanted, words = self._hold
        while wanted and self.commands(*words) < wanted:
            self._more.clear()
            try:
                async with asyncio.timeout(self._quiet_seconds):
                    await self._more.wait()
            except TimeoutError:
                break
        self._hold = (0, ())


class _Connection:
    def __init__(self, number: int) -> None:
        self.number = number
        self.trip = 0
        self.answered = False


@contextmanager
def counting_proxy(
    target: Path, path: Path, *, quiet_seconds: float = 2.0
) -> Iterator[CountingProxy]:
    """Run a proxy at ``path`` in a thread of its own."""
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()
    found: list[CountingProxy] = []

    async def run() -> None:
        proxy = CountingProxy(target, quiet_seconds=quiet_seconds)
        found.append(proxy)
        server = await asyncio.start_unix_server(proxy.serve, path)
        ready.set()
        await done.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        ready.wait()
        yield found[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
