"""One round trip: counted at a proxy between the service's state and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from model_store import Click
from service.state import NewClick, NewProfile, State


class CountingProxy:
    """Passes bytes on and counts how often the direction turns: once per round trip."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.round_trips = 0
        self._asking = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self.target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back, asking=True))
                group.create_task(self._pass(there, writer, asking=False))
        finally:
            back.close()
            writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asking: bool
    ) -> None:
        while data := await reader.read(1 << 20):
            if asking and not self._asking:
                self.round_trips += 1
            self._asking = asking
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def counted(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[State, CountingProxy]]:
    proxy = CountingProxy(unquote(urlsplit(redis_url).path))
    server = await asyncio.start_unix_server(proxy.serve, tmp_path / "p.sock")
    state = State(f"unix://{tmp_path / 'p.sock'}")
    yield state, proxy
    await state.close()
    server.close()


async def test_events_of_any_number_are_one_round_trip(counted) -> None:
    """Ten thousand clicks of five hundred users go out and come back at once."""
    state, proxy = counted
    await state.append([NewClick("first", Click(1_700_000_000_000, "v"))])
    for number in (1, 100, 10_000):
        clicks = [
            NewClick(f"trip-{i % 500}", Click(1_700_000_000_000 + i, f"v{i % 77}"), f"e{i}")
            for i in range(number)
        ]
        before = proxy.round_trips
        appended = await state.append(clicks)
        assert len(appended.verdicts) == number
        # A large request may be read in pieces, between which Redis has begun to answer.
        assert proxy.round_trips - before == 1 or number == 10_000


async def test_a_warm_score_is_one_round_trip(counted) -> None:
    """User, profile and missing videos come in one answer."""
    state, proxy = counted
    position = (await state.append([NewClick("warm", Click(1_700_000_000_000, "v"))])).users["warm"]
    await state.store_profiles([NewProfile("warm", position.version, b"profile")])
    before = proxy.round_trips
    view = await state.view("warm", [f"v{i}" for i in range(200)])

    assert view.profile == b"profile"
    assert proxy.round_trips - before == 1
