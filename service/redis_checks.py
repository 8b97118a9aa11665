"""Whether a Redis keeps what was acknowledged, and is near enough; see deploy/redis.conf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from service.findings import Finding, failed, passed, warned
from service.state.inspection import Server

_LEAST: Final = (6, 2)
_SLOW_MS: Final = 2.0
_CLOCK_WARN_MS: Final = 1_000.0
_FULL_WARN: Final = 0.9
_WANTED_NODE: Final = "-2"


def check_server(
    server: Server, *, timeout_seconds: float, tolerance_seconds: float
) -> Iterator[Finding]:
    """Check one server.

    Args:
        server: what it said.
        timeout_seconds: how long an answer may take.
        tolerance_seconds: how far the time of an event may be ahead.
    """
    where = f"{server.place}: " if server.place else ""
    for finding in (
        _version(server),
        _writes(server),
        _persistence(server),
        _fsync(server),
        _memory_policy(server),
        _memory(server),
        _encoding(server),
        _latency(server, timeout_seconds),
        _clock(server, tolerance_seconds),
    ):
        yield Finding(finding.name, finding.verdict, where + finding.seen, finding.fix)


def _version(server: Server) -> Finding:
    text = server.says("redis_version")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    seen = f"Redis {text}, {server.says('redis_mode') or 'standalone'}"
    if numbers < _LEAST:
        return failed("redis version", seen, fix="install Redis 6.2 or newer")
    return passed("redis version", seen)


def _writes(server: Server) -> Finding:
    role = server.says("role")
    if role not in ("", "master"):
        return failed(
            "redis writes",
            f"it is a {role}, which takes no writes",
            fix="give the address of the master, or of the Sentinels, in CTR_REDIS_URL",
        )
    if server.refusal is not None:
        return failed(
            "redis writes",
            f"a write was refused: {server.refusal}",
            fix="READONLY: ask the master; MISCONF: its disk is full or it cannot fork; OOM: raise "
            "maxmemory; NOPERM: the user needs ~u:* ~v:* ~c:* ~w:* and +@all -@dangerous +info",
        )
    return passed("redis writes", "a key was written and removed" if not server.place else role)


def _persistence(server: Server) -> Finding:
    name = "redis persistence"
    if server.says("aof_enabled") != "1":
        return warned(
            name,
            "no append-only file: a restart of Redis loses clicks that were acknowledged",
            fix="appendonly yes in redis.conf, and CONFIG SET appendonly yes in the running one",
        )
    if server.says("aof_last_write_status") not in ("", "ok"):
        return failed(
            name,
            f"the last write to the append-only file: {server.says('aof_last_write_status')}",
            fix="see the log of Redis: its disk is full or broken",
        )
    if server.says("aof_last_bgrewrite_status") not in ("", "ok"):
        return warned(
            name,
            "the append-only file could not be rewritten, and grows",
            fix="see the log of Redis; on Linux set vm.overcommit_memory=1 for the fork",
        )
    return passed(name, "append-only file on, its last write was good")


def _fsync(server: Server) -> Finding:
    name = "redis appendfsync"
    if server.config is None:
        return _untold(name, "appendfsync everysec or always")
    how = server.config.get("appendfsync", "")
    if how == "no":
        return warned(
            name,
            "no: the machine's end loses what its kernel had not written, half a minute or more",
            fix="appendfsync everysec: a second at most; always: nothing",
        )
    return passed(name, how)


def _memory_policy(server: Server) -> Finding:
    name, policy = "redis policy", server.says("maxmemory_policy")
    if policy in ("noeviction", ""):
        return passed(name, "maxmemory-policy noeviction: a full Redis refuses, and drops nothing")
    seen = f"maxmemory-policy {policy}: a full Redis drops histories without a word"
    return failed(name, seen, fix="CONFIG SET maxmemory-policy noeviction, and in redis.conf")


def _memory(server: Server) -> Finding:
    name = "redis memory"
    used, limit = int(server.info.get("used_memory", 0)), int(server.info.get("maxmemory", 0))
    if not limit:
        return warned(
            name,
            f"{used / 2**20:.0f} MiB used, no maxmemory: a growing Redis ends by the kernel's hand",
            fix="set maxmemory to half of what its machine or container has",
        )
    seen = f"{used / 2**20:.0f} of {limit / 2**20:.0f} MiB used"
    if used >= limit:
        return failed(name, seen, fix="raise maxmemory, or shorten CTR_USER_IDLE_DAYS")
    if used > _FULL_WARN * limit:
        return warned(name, seen, fix="raise maxmemory before clicks are refused")
    return passed(name, seen)


def _encoding(server: Server) -> Finding:
    name, wanted = "redis encoding", f"list-max-listpack-size {_WANTED_NODE}"
    if server.config is None:
        return _untold(name, wanted)
    size = server.config.get("list-max-listpack-size") or server.config.get(
        "list-max-ziplist-size", ""
    )
    depth = server.config.get("list-compress-depth", "0")
    if (size, depth) == (_WANTED_NODE, "0"):
        return passed(name, f"{wanted}: a history is one node")
    return warned(
        name,
        f"list-max-listpack-size {size}, list-compress-depth {depth}: slower, or more memory",
        fix=f"{wanted} and list-compress-depth 0 in redis.conf",
    )


def _latency(server: Server, timeout_seconds: float) -> Finding:
    name = "redis latency"
    seen = f"median {server.ping_ms:.2f} ms, worst of 20 {server.worst_ping_ms:.2f} ms"
    if server.worst_ping_ms > 1e3 * timeout_seconds / 2:
        return failed(
            name,
            seen + f", near the limit of {timeout_seconds:g} s",
            fix="bring Redis nearer, find what holds it up (SLOWLOG GET, LATENCY LATEST), or "
            "raise CTR_REDIS_TIMEOUT_SECONDS",
        )
    if server.ping_ms > _SLOW_MS:
        return warned(
            name, seen, fix="every ranking waits for one round trip: bring Redis into the same zone"
        )
    return passed(name, seen)


def _clock(server: Server, tolerance_seconds: float) -> Finding:
    name, ahead = "clock", server.clock_ahead_ms
    seen = f"Redis is {abs(ahead):.0f} ms {'ahead of' if ahead >= 0 else 'behind'} this machine"
    if abs(ahead) > 1e3 * tolerance_seconds:
        return failed(name, seen, fix="run NTP on both: events would be refused as from the future")
    if abs(ahead) > _CLOCK_WARN_MS:
        return warned(name, seen, fix="run NTP on both machines")
    return passed(name, seen)


def _untold(name: str, wanted: str) -> Finding:
    return warned(
        name, "this Redis does not tell its configuration", fix=f"ask its provider for {wanted}"
    )
