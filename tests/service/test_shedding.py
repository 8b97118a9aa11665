"""Requests that are one too many: which are refused by their heads, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import metrics
from service.access_log import AccessLog
from service.admission import Admission, OverloadedError
from service.app import create_app
from service.draining import Drain
from service.http_protocol import JoinedHttp
from service.problems import problem_response
from service.refusals import TOO_MANY, problem_of
from service.settings import Settings
from service.shedding import Shedding

HEADERS = [(b"host", b"x"), (b"x-request-id", b'say "mine"'), (b"content-length", b"00100")]


class Stand:
    """With room for nothing more, or for something."""

    def __init__(self, *, full: bool = True) -> None:
        self.drain = Drain(0.0)
        admission = Admission(1_000)
        if full:
            admission.enter(900)
        log = AccessLog("off", 1.0)
        self.shedding = Shedding(
            admission, {"/score"}, max_body_bytes=100, access_log=log, drain=self.drain
        )


def test_none_is_refused_while_there_is_room_or_the_process_ends() -> None:
    """An answer of one that ends has to end its connection, too."""
    assert not Stand(full=False).shedding.is_on()
    stand = Stand()
    assert stand.shedding.is_on()
    stand.drain.begun = True
    assert not stand.shedding.is_on()


@pytest.mark.parametrize(
    ("path", "length"), [("/events", b"1"), ("/score/", b"1"), ("/score", b"101")]
)
def test_what_needs_no_room_or_is_too_long_is_left_to_others(path: str, length: bytes) -> None:
    """Clicks are taken, and a body beyond the limit is 413 whatever else there is to do."""
    assert Stand().shedding.refusal(path, [(b"content-length", length)]) is None


@pytest.mark.parametrize("length", [b"0 ", b"0\t", b"000100 "])
def test_blanks_behind_a_length_are_no_fault(length: bytes) -> None:
    """The parser leaves them where they are."""
    assert Stand().shedding.refusal("/score", [(b"content-length", length)]) is not None


def test_a_refusal_says_what_the_longer_way_says() -> None:
    """The same status, body and headers, and it is counted."""
    metrics.KEPT.flush()
    counted = metrics.REQUESTS.labels("/score", "429")._value.get()
    refusal = Stand().shedding.refusal("/score", HEADERS)
    metrics.KEPT.flush()
    assert metrics.REQUESTS.labels("/score", "429")._value.get() == counted + 1

    assert refusal is not None
    status, lines, body = refusal
    headers = dict(line.split(b": ", 1) for line in lines.splitlines())
    # A blank is no visible character: the caller's id is none.
    made = headers[b"x-request-id"].decode()
    assert len(made) == 32

    asked: Any = SimpleNamespace(state=SimpleNamespace(request_id=made))
    usual = problem_response(asked, problem_of(OverloadedError(TOO_MANY)))
    assert (status, body) == (usual.status_code, usual.body)
    assert dict(usual.raw_headers).items() <= headers.items()
    assert set(headers) - set(dict(usual.raw_headers)) == {
        b"x-request-id",
        b"traceparent",
        b"server-timing",
    }
    assert json.loads(body)["request_id"] == made


class Tracer:
    """Wants a span of every request."""

    def begin(self, request: object) -> None: ...

    def end(self, *_: object) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("tracer", [None, Tracer()])
def test_where_traces_are_wanted_every_request_takes_the_longer_way(
    tmp_path: Path, tracer: Any
) -> None:
    """A refused one has a span, too."""
    app = create_app(Settings(model_store=tmp_path, redis_url="redis://x"), tracer=tracer)

    assert hasattr(app, "is_refusing") == (tracer is None)


def test_the_date_of_an_answer_is_the_servers() -> None:
    """Which makes new headers every second; the lines of the last are not written again."""
    sent: list[bytes] = []

    protocol: Any = JoinedHttp.__new__(JoinedHttp)
    protocol._defaults = None
    protocol.transport = SimpleNamespace(write_whole=sent.append)
    for date in (b"one", b"two"):
        protocol.server_state = SimpleNamespace(default_headers=[(b"date", date)])
        for _ in range(2):
            protocol._write_whole(429, b"", b"")

    assert [b"date: one" in each for each in sent] == [True, True, False, False]
    assert all(b"date: two" in each for each in sent[2:])
