"""A request that is answered without a task once it is whole: one answer each, in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.connections import LingeringProtocol
from service.http_protocol import Reply

from .conftest import wait_for
from .listening import answers, request, serving_app

BODY = b"x" * 20_000


class App:
    """Begins paths that begin with /quick, and serves all others; says what became of which."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bytes]] = []
        self.served: list[tuple[str, bytes]] = []
        self.gone = self.heads = self.replied = 0

    def begins_whole(self, scope: Any) -> bool:
        self.heads += 1
        return bool(scope["path"].startswith("/quick"))

    def begin(self, scope: Any, body: bytes, reply: Reply) -> bool:
        path = scope["path"]
        self.begun.append((path, body))
        if path == "/quick/not":
            return False

        def answer() -> None:
            if path == "/quick/after-all":
                reply.serve()
            else:
                whole = (200, b"content-length: 5\r\n", b"quick")
                reply.send(whole, close=path == "/quick/last")
            self.replied += 1

        asyncio.get_running_loop().call_later(0.05 if path == "/quick/late" else 0.0, answer)
        return True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body, more = body + message["body"], message["more_body"]
        self.served.append((scope["path"], body))
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"usual"})


@pytest.fixture(scope="module")
def app() -> App:
    """What is served."""
    return App()


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    """Of a real server in a thread."""
    with serving_app(app, http=LingeringProtocol) as number:
        yield number


@pytest.fixture(autouse=True)
def afresh(app: App) -> None:
    """Nothing is left of the test before."""
    app.begun.clear()
    app.served.clear()
    app.gone = app.heads = app.replied = 0


def words(connection: socket.socket, count: int) -> list[str]:
    """Read the words of so many answers; a connection that ends sooner has fewer."""
    return [a[-5:].decode() for a in answers(connection, count, ends=(b"quick", b"usual"))]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(
        st.sampled_from(["/quick", "/quick/late", "/quick/not", "/quick/after-all", "/usual"]),
        min_size=1,
        max_size=5,
    ),
    sizes=st.lists(st.integers(0, 300), min_size=5, max_size=5),
    cuts=st.lists(st.integers(1, 600), max_size=6),
)
def test_every_request_has_its_answer_in_order(
    app: App, port: int, paths: list[str], sizes: list[int], cuts: list[int]
) -> None:
    """However many come in a piece, and wherever the pieces end."""
    app.begun.clear()
    app.served.clear()
    bodies = [b"%d" % i * size for i, size in zip(range(len(paths)), sizes, strict=False)]
    sent = b"".join(request(p, body=b) for p, b in zip(paths, bodies, strict=True))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in cuts:
            connection.sendall(sent[:cut])
            sent = sent[cut:]
            # Sent on the heels of another they would arrive as one.
            time.sleep(0.001)
        connection.sendall(sent)
        found = words(connection, len(paths))

    asked = list(zip(paths, bodies, strict=True))
    quick = [path in ("/quick", "/quick/late") for path in paths]
    assert len(found) == len(paths)
    # One that waited for the answer to another is served without being begun.
    assert all(word == "usual" for word, is_quick in zip(found, quick, strict=True) if not is_quick)
    assert (found[0] == "quick") == quick[0]
    assert app.served == [a for a, word in zip(asked, found, strict=True) if word == "usual"]
    assert [a for a in app.begun if a[0] in ("/quick", "/quick/late")] == [
        a for a, word in zip(asked, found, strict=True) if word == "quick"
    ]


def test_a_whole_body_is_waited_for(app: App, port: int) -> None:
    """It comes in pieces; nothing is begun before the last."""
    sent = request("/quick", body=BODY)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for start in range(0, len(sent), 5_000):
            assert not app.begun
            connection.sendall(sent[start : start + 5_000])
            # Nothing comes of it that could be waited for.
            time.sleep(0.02)
        assert words(connection, 1) == ["quick"]
    assert app.begun == [("/quick", BODY)]
    assert not app.served


def test_a_caller_who_leaves_in_the_middle_is_heard_of(app: App, port: int) -> None:
    """The app is told as with any other request; nothing is begun of what is not whole."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/quick", body=BODY)[:9_000])
        wait_for(lambda: app.heads == 1)
    wait_for(lambda: app.gone == 1)
    assert not app.begun


def test_an_answer_to_a_caller_who_left_goes_nowhere(
    app: App, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an error that nobody could do anything about; the next caller is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/quick/late", body=BODY))
        wait_for(lambda: bool(app.begun))
    wait_for(lambda: app.replied == 1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/quick"))
        assert words(connection, 1) == ["quick"]
    assert not caplog.records


def test_the_last_answer_closes_the_connection(port: int) -> None:
    """Where the app says that it is the last."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/quick/last"))
        [answer] = answers(connection, 2, ends=(b"quick",))
    assert b"\r\nconnection: close\r\n" in answer


def test_who_asks_for_an_end_gets_it(app: App, port: int) -> None:
    """Such a request takes the longer way."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request("/quick", more="Connection: close\r\n"))
        assert words(connection, 2) == ["usual"]
    assert app.served == [("/quick", b"")]
