"""Connections that come together are shared out among the workers.

Workers listen on one socket, and the one that woke first finds the next connection before another
has woken up: callers who connect in one instant, as an app's pool of connections does, may all
come to it, and the others idle. Here a worker takes one and looks away for a moment, in which the
others take theirs; as long as some are left it takes one more every other time.

Of callers who connect one after another, while nobody is busy, each may still find the same worker
first. So a worker that has more connections open than another one leaves it the first look.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from asyncio import AbstractServer
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from service.open_connections import OpenConnections

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_RETRY_SECONDS: Final = 1.0
"""After a fault, which is seldom gone at once: no room for another open file, say."""
_LOOK_AWAY_SECONDS: Final = 0.002
"""Longer than an idle process takes to wake up, and than timers may be late."""
_MOST: Final = 64
"""Connections taken at a time at most."""

_log = logging.getLogger(__name__)

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class SharingLoop(uvloop.Loop):
    """An event loop that leaves connections of a socket it was given to others who listen, too."""

    # uvloop names each of a dozen arguments; those that are not looked at are handed on.
    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: ProtocolFactory,
        *args: Any,
        sock: socket.socket | None = None,
        backlog: int = 100,
        **kwargs: Any,
    ) -> AbstractServer | SharingServer:
        """Serve; a socket that was given may be that of other processes, too."""
        if sock is None or kwargs.get("ssl") is not None:
            kwargs |= {"sock": sock, "backlog": backlog}
            return await super().create_server(protocol_factory, *args, **kwargs)
        sock.setblocking(False)
        sock.listen(backlog)
        return SharingServer(self, sock, protocol_factory, _of_workers())


def _of_workers() -> OpenConnections | None:
    # Beside their metrics: the one directory that all workers of a service have, and no other.
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return None
    try:
        return OpenConnections(Path(directory) / "connections")
    except OSError as exc:
        # Worse than with it, better than not to answer at all.
        _log.warning("connections are not counted, and may all come to one worker: %s", exc)
        return None


class SharingServer:
    """Takes a few connections at a time, until it is closed.

    Args:
        loop: runs the connections.
        sock: listens, does not block; closed at the end.
        protocol_factory: makes a protocol for each of them.
        open_ones: how many there are, here and elsewhere, where others listen, too.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol_factory: ProtocolFactory,
        open_ones: OpenConnections | None = None,
    ) -> None:
        self._loop, self._sock, self._protocol_factory = loop, sock, protocol_factory
        self._open_ones = open_ones
        self._opening: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._full_looks = 0
        self._is_open = True
        loop.add_reader(sock, self._notice)

    def close(self) -> None:
        """Take no more connections; those that were taken stay."""
        if self._is_open:
            self._is_open = False
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._sock)
            self._sock.close()
            if self._open_ones is not None:
                self._open_ones.leave()

    async def wait_closed(self) -> None:
        """Wait until every connection that was taken has its protocol."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _notice(self) -> None:
        if self._open_ones is not None and self._open_ones.others_have_fewer():
            # Whatever they do not take, because they are busy, is taken here after that.
            self._look_away(_LOOK_AWAY_SECONDS, then=self._look)
        else:
            self._look()

    def _look(self) -> None:
        share = min(1 + self._full_looks // 2, _MOST)
        try:
            taken = self._take(share)
        except OSError as exc:
            # Not raised: the socket stays ready, and the fault would come again without a pause.
            _log.error(
                "connections cannot be taken, and wait for %.0f s: %s (of open files, "
                "ulimit -n allows more)",
                _RETRY_SECONDS,
                exc,
            )
            self._look_away(_RETRY_SECONDS, then=self._notice)
            return
        # Some but not all: others who look took part, and more may be on their way.
        self._full_looks = self._full_looks + 1 if taken == share else self._full_looks // 2
        if taken:
            self._look_away(_LOOK_AWAY_SECONDS, then=self._notice)

    def _look_away(self, seconds: float, *, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(seconds, self._look_again, then)

    def _look_again(self, then: Callable[[], None]) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._notice)
        # Now, too: a look that finds few is what ends the growth.
        then()

    def _take(self, share: int) -> int:
        taken = 0
        while taken < share:
            try:
                connection, _ = self._sock.accept()
            except ConnectionAbortedError:
                # The caller has left; behind it others may wait.
                continue
            except (BlockingIOError, InterruptedError):
                break
            connection.setblocking(False)
            opening = self._loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
            taken += 1
        return taken

    def _made(self) -> asyncio.BaseProtocol:
        protocol = self._protocol_factory()
        return protocol if self._open_ones is None else counted(protocol, self._open_ones)

    async def _open(self, connection: socket.socket) -> None:
        try:
            _, protocol = await self._loop.connect_accepted_socket(self._made, connection)
        except OSError:
            # The caller left before there was a protocol to tell: macOS refuses options then.
            connection.close()
            return
        if not self._is_open:
            # It came to be when uvicorn had told all that there were to end.
            cast("HttpToolsProtocol", protocol).shutdown()


def counted(protocol: asyncio.BaseProtocol, open_ones: OpenConnections) -> asyncio.BaseProtocol:
    """Have a protocol's connection counted for as long as it is open."""
    made, lost = protocol.connection_made, protocol.connection_lost

    def connection_made(transport: asyncio.BaseTransport) -> None:
        open_ones.add(1)
        made(transport)

    def connection_lost(exc: Exception | None) -> None:
        open_ones.add(-1)
        # They hold the protocol that holds them, and would keep it until garbage is collected.
        del protocol.connection_made, protocol.connection_lost
        lost(exc)

    # Of this one alone: the factory is uvicorn's, and what it makes is not told what it is part of.
    protocol.connection_made = connection_made  # type: ignore[method-assign]
    protocol.connection_lost = connection_lost  # type: ignore[method-assign]
    return protocol
