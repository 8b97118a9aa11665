"""What a Redis says about itself: one server, or each master of a cluster."""

from __future__ import annotations

import pytest

from service.redis_checks import check_server
from service.state import StateDownError
from service.state.inspection import inspect


async def test_every_server_is_looked_at(url: str) -> None:
    """Each with its version, its configuration and its clock; every check has a verdict."""
    servers = await inspect(url, timeout_seconds=2.0)

    assert len(servers) == (3 if "cluster" in url else 1)
    assert len({server.place for server in servers}) == len(servers)
    for server in servers:
        assert server.says("redis_version")[0] in "678"
        assert server.config is not None
        assert server.config["appendfsync"] == "everysec"
        assert server.refusal is None
        assert 0 < server.ping_ms <= server.worst_ping_ms
        findings = list(check_server(server, timeout_seconds=60, tolerance_seconds=60))
        assert len(findings) == 9
        assert "FAIL" not in [finding.verdict for finding in findings], findings
        assert all(finding.seen.startswith(server.place) for finding in findings)


async def test_a_server_that_is_away_is_down() -> None:
    """As everywhere else: StateDownError."""
    for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
        with pytest.raises(StateDownError):
            await inspect(url, timeout_seconds=0.5)
