"""A request refused by its head: a whole answer, and a connection that works on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from service.admission import Admission, OverloadedError
from service.api import score

BODY = b"x" * 30_000


class App:
    """Refuses paths that begin with /no, by their heads where it is asked, and says what it served."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def refusal(self, scope: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        if not scope["path"].startswith("/no"):
            return None
        return 429, [(b"content-length", b"2"), (b"retry-after", b"1")], b"no"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.served.append(scope["path"])
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        status, headers, body = self.refusal(scope) or (200, [(b"content-length", b"3")], b"yes")
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> App:
    """What is served."""
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    """Of a real server in a thread, whose idle connections end after a second."""
    config = uvicorn.Config(
        app,
        http="service.connections:LingeringProtocol",
        lifespan="off",
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def request(path: str, *, body: bytes = b"", version: str = "1.1", more: str = "") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Read so many answers; a connection that ends sooner has fewer."""
    answer = b""
    while answer.count(b"HTTP/1.1 ") < count or not answer.endswith((b"yes", b"no")):
        piece = connection.recv(1 << 16)
        if not piece:
            break
        answer += piece
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


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


def test_a_refused_connection_that_idles_is_ended(port: int) -> None:
    """As any other, counted from where the request ended."""
    refused = request("/no", body=BODY)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
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
