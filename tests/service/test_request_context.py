"""Ids of requests: the caller's where they are well-formed, new ones elsewhere."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.request_context import (
    CURRENT,
    RequestContext,
    note_lap,
    note_laps,
    parent_from,
    request_id_from,
    server_timing,
    timed,
    told_by,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        # Flags that this version does not know are left alone.
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        # A later version is read as far as it is understood.
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be", True),
    ],
)
def test_a_valid_traceparent_is_gone_on_with(header: str, sampled: bool) -> None:
    """Trace, caller's span and the sampled flag are those of the header; the state goes along."""
    parent = parent_from(header.encode(), b"vendor=1")

    assert parent == (TRACE, SPAN, sampled, "vendor=1")
    request = RequestContext("r", parent)
    assert request.traceparent.decode().split("-")[1] == TRACE
    assert request.span_id != SPAN
    assert request.traceparent.endswith(b"-01") == sampled


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}g-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_an_invalid_traceparent_is_replaced(header: str) -> None:
    """Whatever the standard calls invalid begins a new trace, which is not sampled."""
    assert parent_from(header.encode()) is None
    text = RequestContext("r", None).traceparent.decode()
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", text)
    assert TRACE not in text


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_no_header_is_too_odd(header: bytes, state: bytes) -> None:
    """Any bytes give a parent that can be written again, or none."""
    parent = parent_from(header, state)

    assert parent is None or parent_from(RequestContext("r", parent).traceparent) is not None
    assert (request_id_from(header) or "-").isprintable()


@pytest.mark.parametrize("mine", ["a", "mine-7", "~" * 128, '{"a":1}'])
def test_a_good_request_id_is_taken_over(mine: str) -> None:
    """One to 128 visible ASCII characters."""
    assert request_id_from(mine.encode()) == mine


@pytest.mark.parametrize("mine", [None, b"", b"a b", b"~" * 129, "é".encode(), b"a\x7f", b"a\n"])
def test_a_bad_request_id_is_replaced(mine: bytes | None) -> None:
    """Everything else becomes 32 hexadecimal digits, never the same twice."""
    headers = [] if mine is None else [(b"x-request-id", mine)]
    made = {told_by(headers).context().request_id for _ in range(100)}

    assert len(made) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


async def test_laps_belong_to_the_request_of_their_task() -> None:
    """Two requests at a time: each has its own pieces, also of what it calls."""

    async def piece(name: str) -> str:
        await asyncio.sleep(0)
        return name

    async def request(name: str) -> RequestContext:
        context = RequestContext(name, None)
        CURRENT.set(context)
        assert await timed(name, piece, "done") == "done"
        note_laps(0.0, [("rows", 0.5, 1.0), ("head", 1.0, 2.0)])
        note_lap("rows", 1.0, 1.25)
        return context

    one, two = await asyncio.gather(request("one"), request("two"))

    assert [name for name, _, _ in one.laps] == ["one", "queue", "rows", "head", "rows"]
    assert two.laps[0][0] == "two"
    text = server_timing(one).decode()
    assert "queue;dur=500.000, rows;dur=750.000, head;dur=1000.000, total;dur=" in text


def test_without_a_request_nothing_is_noted() -> None:
    """Work in the background has no request to be charged to."""
    note_lap("redis", 0, 1)
    note_laps(0, [("head", 0, 1)])

    assert CURRENT.get() is None
