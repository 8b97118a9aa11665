"""A cluster whose slots move while clicks come in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis import Redis

from model_store import Click
from service.state import NewClick, State, StateDownError
from service.state.keys import user_keys

from .conftest import cluster

START = 1_700_000_000_000


def wander(ports: list[int], slot: int, keys: list[str]) -> int:
    """Move a slot to another master, key by key; return how many keys went."""
    nodes = {port: Redis(port=port, decode_responses=True) for port in ports}
    ids = {port: node.execute_command("CLUSTER MYID") for port, node in nodes.items()}
    owner = next(p for p, n in nodes.items() if n.execute_command("CLUSTER COUNTKEYSINSLOT", slot))
    target = next(port for port in ports if port != owner)
    nodes[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[owner])
    nodes[owner].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    moved = 0
    for key in keys:
        # Between two of them the user is on both: a script of several keys is told to try again.
        answer = nodes[owner].execute_command("MIGRATE", "127.0.0.1", target, key, 0, 1000)
        moved += answer == "OK"
    for port in (target, owner, *ports):
        nodes[port].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    for node in nodes.values():
        node.close()
    return moved


@pytest.mark.timeout(180)
async def test_a_slot_that_moves_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """MOVED, ASK and TRYAGAIN are followed, tried again or refused; a retry heals it."""
    key_slot = pytest.importorskip("redis.crc").key_slot
    keys = list(user_keys("nomad")[:3])
    with cluster(tmp_path) as ports:
        state = State("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports))
        versions: list[int] = []
        begun, done = asyncio.Event(), asyncio.Event()

        async def deliver() -> int:
            number = 0
            while number < 150 and not (done.is_set() and number >= 30):
                new = NewClick("nomad", Click(START + number, f"v{number}"), f"e{number}")
                try:
                    appended = await state.append([new])
                except StateDownError:
                    continue
                assert appended.verdicts[0] in ("accepted", "duplicate")
                versions.append(appended.users["nomad"].version)
                number += 1
                begun.set()
                await asyncio.sleep(0.01)
            return number

        delivering = asyncio.create_task(deliver())
        await begun.wait()
        for _ in range(3):
            slot = key_slot(keys[0].encode())
            assert await asyncio.to_thread(wander, ports, slot, keys) >= 2
            await asyncio.sleep(0.1)
        done.set()
        count = await delivering
        history = await state.history("nomad")
        await state.close()

    assert [c.clicked_at_ms - START for c in history.clicks] == list(range(count))
    assert versions == sorted(set(versions))
