"""From an address to a client: one server, Sentinel or Cluster.

* ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``; ``rediss://`` the same over TLS
* ``unix:///PATH/TO/SOCKET``
* ``redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],.../MASTER[/DB]``
* ``redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],...``
* ``rediss+sentinel://``, ``rediss+cluster://`` the same over TLS
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from redis import asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from service.masking import masked_url

AnyClient = redis.Redis | RedisCluster

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26_379
_FORMS: Final = (
    "redis://, rediss://, unix://, redis+sentinel://HOST,HOST/MASTER, redis+cluster://HOST,HOST "
    "(or rediss+... for TLS)"
)


class AddressError(ValueError):
    """An address of Redis that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take.

    Attributes:
        timeout_seconds: limit of connecting and of one answer.
        connections: at most, to one server.
    """

    timeout_seconds: float
    connections: int


def make_client(url: str, limits: Limits) -> AnyClient:
    """Make a client; it connects when it is first used.

    Raises:
        AddressError: the address has none of the forms above.
    """
    options: dict[str, Any] = {
        "socket_timeout": limits.timeout_seconds,
        "socket_connect_timeout": limits.timeout_seconds,
        "protocol": 2,
        # The door retries, with a circuit around it.
        "retry": Retry(NoBackoff(), 0),
    }
    scheme, _, _ = url.partition("://")
    try:
        if scheme in ("redis", "rediss", "unix"):
            return redis.Redis.from_url(url, max_connections=limits.connections, **options)
        parts = urlsplit(url)
        options["ssl"] = scheme.startswith("rediss+")
        options |= _credentials(parts)
        if scheme in ("redis+cluster", "rediss+cluster"):
            nodes = [ClusterNode(host, port) for host, port in _hosts(parts, _PORT)]
            return RedisCluster(startup_nodes=nodes, max_connections=limits.connections, **options)
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel_client(parts, limits, options)
    except ValueError as exc:
        if "@" not in url:
            raise AddressError(f"the address of Redis cannot be understood: {exc}") from exc
        # The library's words may quote a piece of the password.
        raise AddressError(
            f"the address of Redis cannot be understood: {masked_url(url)}; / ? # and @ in a "
            "password are written %2F %3F %23 and %40"
        ) from None
    shown = masked_url(url).partition("://")[0]
    raise AddressError(f"the address of Redis starts with {shown!r}: the forms are {_FORMS}")


def check_address(url: str) -> None:
    """Make sure that a client can be made of an address; nothing is connected.

    Raises:
        AddressError: the address has none of the forms above.
    """
    make_client(url, Limits(timeout_seconds=1.0, connections=1))


async def close_client(client: AnyClient) -> None:
    """Close all its connections, those to Sentinels too: the library forgets them."""
    await client.aclose()
    pool = None if isinstance(client, RedisCluster) else client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _sentinel_client(parts: SplitResult, limits: Limits, options: dict[str, Any]) -> redis.Redis:
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise AddressError("the address of Sentinels lacks the master's name: .../NAME[/DB]")
    # Sentinels are asked as the master is, but for its credentials: theirs would be others.
    watch = {key: value for key, value in options.items() if key not in ("username", "password")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(_hosts(parts, _SENTINEL_PORT)), sentinel_kwargs=watch
    )
    client: redis.Redis = sentinel.master_for(
        name, db=int(database or 0), max_connections=limits.connections, **options
    )
    return client


def _credentials(parts: SplitResult) -> dict[str, str]:
    found = {"username": parts.username, "password": parts.password}
    return {name: unquote(value) for name, value in found.items() if value}


def _hosts(parts: SplitResult, port: int) -> Sequence[tuple[str, int]]:
    hosts = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        host = urlsplit(f"//{place}")
        if not host.hostname:
            raise AddressError(f"{place!r} is no host: HOST[:PORT],HOST[:PORT],...")
        hosts.append((host.hostname, host.port or port))
    return hosts
