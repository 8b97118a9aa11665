"""The shared connection: answers in order, whatever callers, time-outs and servers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from redis import exceptions

from service.embedded_redis import find_server
from service.state.lane import Lane

from .conftest import free_port, start_server

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def lane(embedded_url: str) -> AsyncIterator[Lane]:
    lane = Lane(embedded_url, timeout_seconds=2.0)
    yield lane
    lane.close()


async def served(serve: Serve, path: Path) -> asyncio.Server:
    return await asyncio.start_unix_server(serve, path)


@pytest.mark.parametrize(
    ("url", "served"),
    [
        ("redis://h:1/2", True),
        ("unix:///p?db=3", True),
        ("redis://u:p@h", True),
        ("rediss://h", False),
        ("redis+cluster://h", False),
        ("redis://h?health_check_interval=3", False),
    ],
)
def test_a_lane_serves_plain_addresses_only(url: str, served: bool) -> None:
    """What it does not understand goes through the library."""
    assert Lane.serves(url) is served


async def test_every_caller_gets_the_own_answers(lane: Lane) -> None:
    """Hundreds at once, of several commands each, some hanging up."""

    async def ask(number: int) -> list[object]:
        calls = [("SET", f"lane{number}", number), ("GET", f"lane{number}"), ("STRLEN", "lane7")]
        return await lane.send(calls)

    tasks = [asyncio.create_task(ask(number)) for number in range(300)]
    await asyncio.sleep(0)
    for task in tasks[::10]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)

    for number, answers in enumerate(found):
        if number % 10:
            assert not isinstance(answers, BaseException)
            assert answers[1] == str(number).encode()


async def test_an_error_stands_in_the_place_of_its_answer(lane: Lane) -> None:
    """The commands around it are answered."""
    await lane.send([("SET", "text", "x")])
    pong, unknown, wrong, again = await lane.send(
        [("GET", "text"), ("EVALSHA", "0" * 40, 0), ("LPUSH", "text", 1), ("GET", "text")]
    )

    assert pong == again == b"x"
    assert isinstance(unknown, exceptions.NoScriptError)
    assert "WRONGTYPE" in str(wrong)


async def test_an_answer_that_comes_too_late_is_dealt_to_nobody(tmp_path: Path) -> None:
    """The connection is given up; the next caller gets a new one."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        with suppress(OSError):
            while await reader.read(1 << 16):
                if mine == 1:
                    await asyncio.sleep(0.3)
                writer.write(b"$%d\r\n%s\r\n" % (len(str(mine)), str(mine).encode()))
        writer.close()

    async with await served(serve, tmp_path / "s"):
        lane = Lane(f"unix://{tmp_path / 's'}", timeout_seconds=0.1)
        first = asyncio.create_task(lane.send([("GET", "a")]))
        beside = asyncio.create_task(lane.send([("GET", "b")]))
        with pytest.raises(TimeoutError):
            await first
        with pytest.raises((exceptions.ConnectionError, TimeoutError)):
            await beside
        await asyncio.sleep(0.3)
        assert await lane.send([("GET", "c")]) == [b"2"]
        lane.close()
        await asyncio.sleep(0.05)


async def test_each_question_has_a_time_of_its_own(tmp_path: Path) -> None:
    """Though one timer runs for all: it neither ends with the first answer nor cuts the next one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while asked := await reader.read(1 << 16):
                if b"hang" in asked:
                    continue
                await asyncio.sleep(0.3 if b"slow" in asked else 0.0)
                writer.write(b"$4\r\nwell\r\n")
        writer.close()

    async with await served(serve, tmp_path / "s"):
        lane = Lane(f"unix://{tmp_path / 's'}", timeout_seconds=0.5)
        assert await lane.send([("GET", "quick")]) == [b"well"]
        await asyncio.sleep(0.35)
        # Answered after the moment at which the first one would have been too late.
        assert await lane.send([("GET", "slow")]) == [b"well"]
        begin = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lane.send([("GET", "hang")]), 5)
        assert asyncio.get_running_loop().time() - begin > 0.4
        lane.close()
        await asyncio.sleep(0.05)


async def test_a_connection_that_hangs_is_given_up_though_all_hung_up(tmp_path: Path) -> None:
    """Callers in more of a hurry than the lane would otherwise wait on it one after the other."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        with suppress(OSError):
            while await reader.read(1 << 16):
                if mine > 1:
                    writer.write(b"$4\r\nwell\r\n")
        writer.close()

    async with await served(serve, tmp_path / "s"):
        lane = Lane(f"unix://{tmp_path / 's'}", timeout_seconds=0.2)
        answer = None
        async with asyncio.timeout(5):
            while answer is None:
                with suppress(TimeoutError, exceptions.ConnectionError):
                    answer = await asyncio.wait_for(lane.send([("GET", "a")]), 0.05)
        lane.close()
        await asyncio.sleep(0.05)

    assert answer == [b"well"]
    assert connections == 2


async def test_all_who_wait_for_a_connection_fail_at_once(tmp_path: Path) -> None:
    """A server that takes connections and says nothing is asked once, not once for each."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(OSError):
            await reader.read()
        writer.close()

    async with await served(serve, tmp_path / "s"):
        lane = Lane(f"unix://{tmp_path / 's'}?db=1", timeout_seconds=0.2)
        asked = (lane.send([("GET", str(number))]) for number in range(50))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(each, TimeoutError) for each in found)
        assert connections == 1
        lane.close()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [b"!nonsense\r\n", b""])
async def test_a_server_that_breaks_off_is_an_error_for_all(tmp_path: Path, answer: bytes) -> None:
    """Nobody waits for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(10)
            writer.write(answer)
        writer.close()

    async with await served(serve, tmp_path / "s"):
        lane = Lane(f"unix://{tmp_path / 's'}", timeout_seconds=2.0)
        asked = (lane.send([("GET", str(number))]) for number in range(5))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(each, exceptions.ConnectionError) for each in found)
        lane.close()
        await asyncio.sleep(0.05)


async def test_a_password_is_given_and_a_wrong_one_refused(tmp_path: Path) -> None:
    """Before any command of a caller."""
    port = free_port()
    process = start_server(find_server(), tmp_path, "--requirepass", "", port=port)
    try:
        setup = Lane(f"redis://127.0.0.1:{port}", timeout_seconds=2.0)
        await setup.send([("CONFIG SET", "requirepass", "s3cret")])
        setup.close()
        right = Lane(f"redis://:s3cret@127.0.0.1:{port}/2", timeout_seconds=2.0)
        assert await right.send([("SET", "a", 1), ("DBSIZE",)]) == [b"OK", 1]
        right.close()
        wrong = Lane(f"redis://:other@127.0.0.1:{port}", timeout_seconds=2.0)
        with pytest.raises(exceptions.AuthenticationError):
            await wrong.send([("GET", "a")])
        wrong.close()
    finally:
        process.kill()
        process.wait()
