"""From SIGTERM to the end of a process, without losing a request.

1. Notice. The process is no longer ready, and every answer ends its connection; connections are
   still taken, for proxies need a moment to hear of it.
2. The port is closed. What was begun is finished; connections without a request stay open for a
   moment, for a request may be on its way.
3. What is not finished within the limit is broken off.

The first is done here, the second by uvicorn with the connections of ``connections``.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from types import FrameType
from typing import Any

_log = logging.getLogger(__name__)


class Drain:
    """Whether this process is about to end.

    Args:
        notice_seconds: how long it still takes connections.
    """

    def __init__(self, notice_seconds: float) -> None:
        self._notice_seconds = notice_seconds
        self.begun = False
        """Whether SIGTERM has come."""

    def watch(self) -> None:
        """Put the notice before whatever the server does on SIGTERM; a second one cuts it short.

        Does nothing outside a main thread, or where the server leaves SIGTERM alone: then nobody
        ends this process gently.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        servers: Any = signal.getsignal(signal.SIGTERM)
        if not callable(servers):
            return
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            if self.begun or not self._notice_seconds:
                self.begun = True
                servers(number, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(self._give_notice, loop, servers)

        signal.signal(signal.SIGTERM, begin)

    def _give_notice(self, loop: asyncio.AbstractEventLoop, servers: Any) -> None:
        _log.info("going away: not ready, the port closes in %.1f s", self._notice_seconds)
        loop.call_later(self._notice_seconds, servers, signal.SIGTERM, None)
