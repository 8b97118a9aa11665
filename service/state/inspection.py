"""What a Redis says about itself, for an operator who wants to know whether it will do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError, ResponseError

from service.state.clients import Limits, close_client, make_client
from service.state.door import translated
from service.state.keys import PROBE

_PINGS: Final = 21
_CONFIG: Final = (
    "appendfsync",
    "list-max-listpack-size",
    # What Redis 6.2 calls it.
    "list-max-ziplist-size",
    "list-compress-depth",
)

Ask = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Server:
    """One server that holds data.

    Attributes:
        place: its address, empty where there is one.
        info: of the command ``INFO``.
        config: directives that matter here; ``None`` where it does not tell, as managed ones do.
        refusal: why it does not take a write; ``None`` where it does.
        ping_ms: of 21 round trips, the median.
        worst_ping_ms: the longest of them.
        clock_ahead_ms: its clock against this machine's.
    """

    place: str
    info: dict[str, Any]
    config: dict[str, str] | None
    refusal: str | None
    ping_ms: float
    worst_ping_ms: float
    clock_ahead_ms: float

    def says(self, name: str) -> str:
        """Return a value of its ``INFO`` as text, empty where it has none."""
        return str(self.info.get(name, ""))


async def inspect(url: str, *, timeout_seconds: float) -> list[Server]:
    """Look at a Redis; at each of the masters of a cluster. Writes one key that is gone at once.

    Raises:
        AddressError: the address cannot be understood.
        StateDownError: it cannot be reached, or lets nobody in.
    """
    client = make_client(url, Limits(timeout_seconds, 2))
    try:
        with translated():
            if isinstance(client, RedisCluster):
                await client.initialize()
                return [
                    await _server(_of_node(client, node), node.name)
                    for node in client.get_primaries()
                ]
            return [await _server(client.execute_command, "")]
    finally:
        await close_client(client)


def _of_node(client: RedisCluster, node: Any) -> Ask:
    async def ask(*words: str | int) -> Any:
        answer = await client.execute_command(*words, target_nodes=node)
        # It answers by node where several might have been asked.
        return answer[node.name] if isinstance(answer, dict) and node.name in answer else answer

    return ask


async def _server(ask: Ask, place: str) -> Server:
    pings = []
    for _ in range(_PINGS):
        start = time.perf_counter()
        await ask("PING")
        pings.append(1e3 * (time.perf_counter() - start))
    # The first one connects.
    del pings[0]
    return Server(
        place=place,
        info=await ask("INFO"),
        config=await _config(ask),
        refusal=None if place else await _refusal(ask),
        ping_ms=statistics.median(pings),
        worst_ping_ms=max(pings),
        clock_ahead_ms=await _clock_ahead_ms(ask),
    )


async def _config(ask: Ask) -> dict[str, str] | None:
    found: dict[str, str] = {}
    try:
        for name in _CONFIG:
            found |= {_text(k): _text(v) for k, v in (await ask("CONFIG GET", name)).items()}
    except ResponseError:
        return None
    return found


async def _refusal(ask: Ask) -> str | None:
    try:
        await ask("SET", PROBE, "1", "PX", 1)
    except (RedisError, RedisClusterException) as exc:
        return str(exc)
    with suppress(RedisError):
        await ask("DEL", PROBE)
    return None


async def _clock_ahead_ms(ask: Ask) -> float:
    before = time.time()
    seconds, microseconds = await ask("TIME")
    here = (before + time.time()) / 2
    return 1e3 * (int(seconds) + int(microseconds) / 1e6 - here)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
