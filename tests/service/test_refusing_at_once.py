"""A request refused by its head: a whole answer, and a connection that works on."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.admission import Admission, OverloadedError
from service.api import score
from service.connections import LingeringProtocol
from service.http_protocol import plain_request

from .listening import answers, request, serving_app

BODY = b"x" * 30_000
LONG = 50_000


class App:
    """Refuses paths that begin with /no, by their heads where it is asked, and says what it served."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.refused = 0

    def is_refusing(self) -> bool:
        return True

    def refusal(self, path: str, _: object) -> tuple[int, bytes, bytes] | None:
        if not path.startswith("/no"):
            return None
        self.refused += 1
        body = b"no" * (LONG if path.endswith("long") else 1)
        return 429, b"content-length: %d\r\nretry-after: 1\r\n" % len(body), body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.served.append(scope["path"])
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        refusal = self.refusal(scope["path"], ())
        status, lines, body = refusal or (200, b"content-length: 3\r\n", b"yes")
        headers = [tuple(line.split(b": ")) for line in lines.splitlines()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> App:
    """What is served."""
    return App()


class Counting(LingeringProtocol):
    """Counts the messages that its parser began to read."""

    parsed = 0

    def on_message_begin(self) -> None:
        Counting.parsed += 1
        super().on_message_begin()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    """Of a real server in a thread."""
    with serving_app(app, http=Counting, idle_seconds=60) as number:
        yield number


@pytest.fixture
def impatient(app: App) -> Iterator[int]:
    """The same, whose idle connections end after three seconds."""
    with serving_app(app, http=Counting, idle_seconds=3) as number:
        yield number


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Read the statuses of so many answers; a connection that ends sooner has fewer."""
    return [int(answer[:3]) for answer in answers(connection, count, ends=(b"yes", b"no"))]


def test_the_rest_of_a_refused_body_is_passed_over(app: App, port: int) -> None:
    """The answer does not wait for it, and the next request is read from where it ends."""
    refused = request("/no", body=BODY)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(3):
            connection.sendall(refused[:200])
            assert statuses(connection, 1) == [429]
            connection.sendall(refused[200:9_000])
            connection.sendall(refused[9_000:] + request("/yes", body=BODY))
            assert statuses(connection, 1) == [200]
    assert app.served == ["/yes"] * 3


def test_thousands_of_requests_in_one_piece_are_answered_in_order(port: int) -> None:
    """Refusing one that waited leads to the next, however many there are."""
    paths = ["/yes", *["/no"] * 2_000, "/yes", "/no"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        whole = b"".join(map(request, paths))
        sender = threading.Thread(target=connection.sendall, args=(whole,))
        sender.start()
        found = statuses(connection, len(paths))
        sender.join()
    assert found == [200 if path == "/yes" else 429 for path in paths]


HIDDEN = request("/no", body=b"x") + request("/yes")


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    paths=st.lists(st.sampled_from(["/no", "/yes"]), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 1_500), max_size=8),
    data=st.data(),
)
def test_answers_do_not_depend_on_how_requests_are_cut(
    app: App, port: int, paths: list[str], cuts: set[int], data: st.DataObject
) -> None:
    """Above all, a body that looks like requests is none, wherever a piece of it begins."""
    bodies = st.sampled_from([b"", b"x", HIDDEN, b"y" + HIDDEN])
    whole = b"".join(request(path, body=data.draw(bodies)) for path in paths)
    # At the borders of hidden requests, too, where a piece begins as a request does.
    hidden = [at.start() for at in re.finditer(b"POST", whole)]
    places = sorted({0, *cuts, *data.draw(st.sets(st.sampled_from(hidden)))} & {*range(len(whole))})
    app.served.clear()
    app.refused = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin, end in pairwise([*places, len(whole)]):
            connection.sendall(whole[begin:end])
            time.sleep(0.002)
        found = statuses(connection, len(paths))
        connection.sendall(request("/yes"))
        found += statuses(connection, 1)
    assert found == [200 if path == "/yes" else 429 for path in [*paths, "/yes"]]
    assert app.served.count("/yes") == paths.count("/yes") + 1
    assert app.refused == paths.count("/no")


@pytest.mark.parametrize(
    "more",
    [
        "Transfer-Encoding: identity\r\n",
        "Content-Length: 1\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, upgrade\r\n",
        "Proxy-Connection: close\r\n",
        "Upgrade: x\r\n",
        "Expect: x\r\n",
        "X: a\r\n b\r\n",
        "X: a\nY: b\r\n",
        "X : a\r\n",
        "X: \x00\r\n",
        "no colon\r\n",
    ],
)
def test_only_the_plainest_form_is_read_without_a_parser(more: str) -> None:
    """What anyone might read in another way is the parser's to judge."""
    plain, odd = request("/no", body=b"abc"), request("/no", body=b"abc", more=more)

    assert plain_request(plain) == ("/no", ((b"host", b"x"), (b"content-length", b"3")))
    assert plain_request(odd) is None
    stays = request("/no", body=b"abc", more="Connection: Keep-Alive\r\n")
    assert plain_request(stays) is not None
    lengths = [b"", b"+3", b"3 3", b"0x3", b"9" * 5_000, b"0" * 5_000 + b"3"]
    odd_lengths = [plain.replace(b": 3", b": " + length) for length in lengths]
    # Of two, an empty one counts, too.
    odd_lengths.append(plain.replace(b"Content-Length", b"Content-Length:\r\nContent-Length"))
    for wrong in (plain[:-1], plain + b"x", *odd_lengths):
        assert wrong != plain
        assert plain_request(wrong) is None


def test_a_head_that_was_read_before_is_judged_by_its_own_body() -> None:
    """It is remembered, the length that it names with it; how much came is another's."""
    plain = request("/no", body=b"abc")
    for _ in range(2):
        assert plain_request(plain) is not None
        assert plain_request(plain + b"x") is None
        assert plain_request(plain[:-1]) is None
    assert plain_request(plain[:-1] + b"\r\n\r\n") is None


@pytest.mark.parametrize("together", [True, False])
def test_a_caller_that_reads_no_answers_is_not_refused_at_once(
    app: App, port: int, together: bool
) -> None:
    """Else its answers pile up in memory; the longer way waits until it reads."""
    asked = request("/no/long", body=b"x")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for piece in [asked * 200] if together else [asked] * 200:
            connection.sendall(piece)
            time.sleep(0.005)
        time.sleep(0.5)
        assert 0 < app.refused < 150


@pytest.mark.parametrize(
    ("version", "more"),
    [("1.1", "Expect: 100-continue\r\n"), ("1.0", ""), ("1.1", "Connection: close\r\n")],
)
def test_what_is_not_usual_is_served_by_the_app(
    app: App, port: int, version: str, more: str
) -> None:
    """A caller that awaits leave to send its body, or whose connection ends with the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/no", version=version, more=more))
        assert statuses(connection, 1)[-1] == 429
    assert app.served == ["/no"]


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n"])
def test_what_came_whole_is_refused_before_it_is_parsed(port: int, more: str) -> None:
    """And what is served is parsed, on the same connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for path, parsed in (("/no", 0), ("/yes", 1), ("/no", 0), ("/no", 0)):
            before = Counting.parsed
            connection.sendall(request(path, body=b"x" * 6_000, more=more))
            assert statuses(connection, 1) == [200 if parsed else 429]
            assert Counting.parsed - before == parsed


def test_a_connection_whose_requests_are_refused_stays_open(impatient: int) -> None:
    """It idles from its last request on, not from its first; and then it is ended."""
    with socket.create_connection(("127.0.0.1", impatient), timeout=10) as connection:
        for _ in range(6):
            connection.sendall(request("/no", body=b"x"))
            assert statuses(connection, 1) == [429]
            time.sleep(0.7)
        assert connection.recv(1) == b""


def test_a_refused_connection_that_idles_is_ended(impatient: int) -> None:
    """As any other, counted from where the request ended."""
    refused = request("/no", body=BODY)
    with socket.create_connection(("127.0.0.1", impatient), timeout=10) as connection:
        connection.sendall(refused[:200])
        assert statuses(connection, 1) == [429]
        connection.sendall(refused[200:])
        begin = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - begin < 8


async def test_refusals_share_nothing_that_grows() -> None:
    """One error raised again and again would keep the frames, and bodies, of all requests."""
    parts: Any = SimpleNamespace(admission=SimpleNamespace(full=True))
    raised = []
    for _ in range(2):
        with pytest.raises(OverloadedError) as caught:
            await score(parts, b"", {})
        raised.append(caught.value)

    assert raised[0] is not raised[1]


def test_there_is_no_room_for_a_request_of_the_usual_size() -> None:
    """Smaller ones are refused with it: to find out would mean to read them."""
    admission = Admission(1_600)
    for _ in range(200):
        with admission.admitted(300):
            assert not admission.full
    with admission.admitted(400), admission.admitted(200):
        assert not admission.full
        with admission.admitted(150):
            assert admission.full
            with (
                pytest.raises(OverloadedError, match="1350 candidates"),
                admission.admitted(300),
            ):
                pass
    assert admission.rows == 0
    assert not admission.full


def test_a_request_counts_beside_its_candidates() -> None:
    """Else a queue of small ones, which cost as much to read and answer, is many times as long."""
    admission = Admission(20_000)
    with ExitStack() as stack:
        for _ in range(99):
            stack.enter_context(admission.admitted(1))
        with pytest.raises(OverloadedError, match="counted as 200"):
            stack.enter_context(admission.admitted(1))
    assert admission.rows == 0
    with admission.admitted(50_000):
        assert admission.rows > 50_000
