"""A steady load that forgives nothing: every request is sent once, and must get a good answer.

Half of the requests go down connections that are kept, as a proxy's do, half down a connection of
their own. A kept connection that the server has ended before a request is sent is replaced, as
every client does; one that ends afterwards has lost the request.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Outcome:
    """What became of the requests.

    Attributes:
        patience: seconds that a request may take.
        sent: requests.
        failures: those without a good answer, by what happened.
        moments: when each good answer came, by ``time.monotonic()``.
        latencies: seconds from when it was due to the answer, in the same order.
    """

    patience: float
    sent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    moments: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Requests without a good answer."""
        return self.sent - len(self.latencies)

    def percentile_ms(self, share: float, *, since: float = 0.0, until: float = np.inf) -> float:
        """Latency that a share (0 to 100) of the answers between two moments stays below."""
        moments = np.array(self.moments)
        chosen = np.array(self.latencies)[(moments >= since) & (moments < until)]
        return float(1e3 * np.percentile(chosen, share)) if len(chosen) else np.nan


async def keep_steady(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    stop: asyncio.Event,
    patience: float = 10.0,
    most: int = 1_000,
) -> Outcome:
    """Send requests at a rate, whatever becomes of the earlier ones, until told to stop.

    Args:
        port: on loopback.
        requests: sent in turn.
        rate: requests a second.
        stop: ends it; what was sent still gets its answer.
        patience: seconds after which a request without an answer is lost.
        most: requests at a time; a server that cannot keep up gets fewer a second.
    """
    outcome, kept = Outcome(patience), deque[Streams]()
    room = asyncio.Semaphore(most)
    async with asyncio.TaskGroup() as group:
        begin = time.monotonic()
        for number in itertools.count():
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await room.acquire()
            if stop.is_set():
                break
            request = requests[number % len(requests)]
            outcome.sent += 1
            sending = _send(port, request, due, kept if number % 2 else None, outcome)
            group.create_task(sending).add_done_callback(lambda _: room.release())
    for _, writer in kept:
        writer.close()
    return outcome


async def _send(
    port: int, request: bytes, due: float, kept: deque[Streams] | None, outcome: Outcome
) -> None:
    streams: Streams | None = None
    try:
        async with asyncio.timeout(outcome.patience):
            streams = _kept(kept) or await asyncio.open_connection("127.0.0.1", port)
            reader, writer = streams
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, length, closes = _read(head)
            await reader.readexactly(length)
    except (OSError, EOFError, TimeoutError) as exc:
        outcome.failures[type(exc).__name__] += 1
    else:
        if 200 <= status < 300:  # noqa: PLR2004  what is good
            now = time.monotonic()
            outcome.moments.append(now)
            outcome.latencies.append(now - due)
        else:
            outcome.failures[str(status)] += 1
        if kept is not None and not closes:
            kept.append(streams)
            return
    if streams is not None:
        streams[1].close()
        with suppress(OSError):
            await streams[1].wait_closed()


def _kept(kept: deque[Streams] | None) -> Streams | None:
    while kept:
        reader, writer = kept.popleft()
        if not reader.at_eof() and not writer.is_closing():
            return reader, writer
        writer.close()
    return None


def _read(head: bytes) -> tuple[int, int, bool]:
    """Read the status of an answer, the length of its body, and whether it is the last one."""
    status, *lines = head.decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines if line)
    return (
        int(status.split()[1]),
        int(fields["content-length"]),
        "close" in fields.get("connection", ""),
    )
