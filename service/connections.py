"""Connections as uvicorn has them, but for their end.

uvicorn closes a connection without a request the moment it shuts down. A request that is on its
way then, as on a connection that was taken a millisecond before, is lost. Here such a connection
stays open for a moment; an answer in that time ends it, for the whole process is draining.
"""

from __future__ import annotations

from typing import Final

from service.http_protocol import JoinedHttp

_LINGER_SECONDS: Final = 0.5


class LingeringProtocol(JoinedHttp):
    """HTTP/1.1 whose idle connections outlast the order to shut down a little."""

    def shutdown(self) -> None:
        """Shut down: at once after a request that is being answered, otherwise in a moment."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LINGER_SECONDS, self._look_again)
        else:
            super().shutdown()

    def _look_again(self) -> None:
        # A loop that is busy runs its timers before it reads: what has arrived meanwhile is read
        # in the turn after this one.
        self.loop.call_soon(self.loop.call_soon, super().shutdown)
