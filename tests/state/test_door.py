"""The door: a circuit that opens, lets one probe through, and closes again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.embedded_redis import find_server
from service.state import State, StateDownError
from service.state.circuit import Circuit

from .conftest import free_port, start_server


async def test_a_circuit_opens_after_failures_in_a_row() -> None:
    """A success in between begins the count anew; open, nothing is let through."""
    circuit = Circuit(failures=3, open_seconds=60)
    for outcome in (False, False, True, False, False):
        probe = circuit.enter()
        assert not probe
        circuit.succeed() if outcome else circuit.fail(probe=probe)
        circuit.leave(probe=probe)
    assert not circuit.is_open
    circuit.fail(probe=circuit.enter())

    assert circuit.is_open
    with pytest.raises(StateDownError, match="next try in"):
        circuit.enter()


async def test_one_probe_decides() -> None:
    """After the wait one call is let through; it alone closes the circuit or lengthens the wait."""
    circuit = Circuit(failures=1, open_seconds=0.02)
    circuit.fail(probe=circuit.enter())
    await asyncio.sleep(0.03)
    assert circuit.enter()
    with pytest.raises(StateDownError):
        circuit.enter()
    circuit.fail(probe=True)
    circuit.leave(probe=True)
    assert circuit.is_open
    await asyncio.sleep(0.06)
    assert circuit.enter()
    # A probe that was cancelled had no answer either: the place is another's after a wait.
    circuit.leave(probe=True)
    with pytest.raises(StateDownError):
        circuit.enter()
    await asyncio.sleep(0.03)
    assert circuit.enter()
    circuit.succeed()
    circuit.leave(probe=True)

    assert not circuit.is_open
    assert not circuit.enter()


async def test_a_server_that_hangs_costs_time_only_until_the_circuit_opens(tmp_path: Path) -> None:
    """Hundreds of calls at once are all refused; well again it is found without a restart."""
    port = free_port()
    server = start_server(find_server(), tmp_path, port=port)
    state = State(f"redis://127.0.0.1:{port}/0", timeout_seconds=0.2)
    try:
        await state.ping()
        server.send_signal(19)
        found = await asyncio.gather(*(state.ping() for _ in range(300)), return_exceptions=True)
        assert all(isinstance(each, StateDownError) for each in found)
        assert state.circuit_open
        server.send_signal(18)
        async with asyncio.timeout(20):
            while state.circuit_open:
                await asyncio.sleep(0.05)
                await asyncio.gather(state.ping(), return_exceptions=True)
        await state.ping()
    finally:
        await state.close()
        server.kill()
        server.wait()
