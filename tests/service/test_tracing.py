"""Requests as spans, by the SDK's own exporter in memory; nothing of it without the setting."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import uvicorn

pytest.importorskip("opentelemetry.sdk", reason="pip install 'thacil-ctr[otel]'")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from model_store import ModelStore
from service.app import create_app
from service.connections import LingeringProtocol
from service.settings import Settings
from service.tracing import Tracer, tracer_from_environment

from .conftest import ROOT, serving, wait_for

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SCORE = {"user_id": "traced", "candidates": [{"video_id": "traced-1"}]}


class Traced:
    """A service in this process whose spans can be looked at."""

    def __init__(self, client: httpx.Client, exporter: InMemorySpanExporter) -> None:
        self.client = client
        self._exporter = exporter

    def spans(self, request_id: str) -> list[ReadableSpan]:
        """The spans of a request, its own first."""
        found: list[ReadableSpan] = []

        def ended() -> bool:
            spans = self._exporter.get_finished_spans()
            roots = [s for s in spans if (s.attributes or {}).get("ctr.request_id") == request_id]
            found[:] = roots + [s for s in spans if roots and below(s, roots[0])]
            return bool(roots)

        wait_for(ended)
        return found


def below(span: ReadableSpan, root: ReadableSpan) -> bool:
    return span.parent is not None and span.parent.span_id == root.context.span_id


@pytest.fixture(scope="module")
def traced(
    store: ModelStore, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    # Whose caller records is recorded, nobody else.
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(
        model_store=store.root,
        redis_url=redis_url,
        data_dir=tmp_path_factory.mktemp("traced"),
        drain_notice_seconds=0,
    )
    app = create_app(settings, tracer=Tracer(provider))
    config = uvicorn.Config(
        app, http=LingeringProtocol, log_config=None, access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        try:
            wait_for(lambda: server.started)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                video = {"video_id": "traced-1", "category": 1, "features": [1, 2, 3]}
                client.put("/videos", json={"videos": [video]}).raise_for_status()
                yield Traced(client, exporter)
        finally:
            server.should_exit = True
            thread.join()


def asked(traced: Traced, request_id: str, flags: str = "01") -> httpx.Response:
    headers = {"x-request-id": request_id, "traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
    return traced.client.post("/score", json=SCORE, headers={**headers, "tracestate": "v=1"})


def test_a_ranking_is_a_span_with_its_pieces_below(traced: Traced) -> None:
    """The request goes on the caller's trace; redis, profile, rows and head lie inside of it."""
    answer = asked(traced, "spans-1").raise_for_status()
    root, *pieces = traced.spans("spans-1")

    assert root.name == "POST /score"
    assert root.kind is SpanKind.SERVER
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == SPAN
    assert root.parent.is_remote
    assert root.context.trace_state.to_header() == "v=1"
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
        "ctr.request_id": "spans-1",
    }
    assert answer.headers["traceparent"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
    assert {span.name for span in pieces} == {"redis", "profile", "queue", "rows", "head"}
    for span in pieces:
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
        assert span.context.trace_id == root.context.trace_id


def test_a_ranking_without_a_task_has_the_same_pieces(traced: Traced) -> None:
    """One span each, from the second on of a profile in memory."""
    event = {"user_id": "traced", "video_id": "traced-1", "timestamp": 1_700_000_000_000}
    traced.client.post("/events", json={"events": [event]}).raise_for_status()
    for turn in range(4):
        answer = asked(traced, f"again-{turn}").raise_for_status()
        root, *pieces = traced.spans(f"again-{turn}")
        assert answer.headers["traceparent"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
        assert {span.name for span in pieces} >= {"redis", "profile", "queue", "rows", "head"}
        assert len(traced.spans(f"again-{turn}")) == 1 + len(pieces)
        for span in pieces:
            assert root.start_time <= span.start_time <= span.end_time <= root.end_time


def test_what_the_caller_does_not_record_is_not_recorded(traced: Traced) -> None:
    """The sampled flag is kept in the answer; without it there are no spans."""
    answer = asked(traced, "spans-2", flags="00").raise_for_status()
    asked(traced, "spans-3").raise_for_status()
    traced.spans("spans-3")

    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert answer.headers["traceparent"].endswith("-00")
    names = [s.attributes or {} for s in traced._exporter.get_finished_spans()]
    assert "spans-2" not in [attributes.get("ctr.request_id") for attributes in names]


def test_no_span_tells_who_saw_what(traced: Traced) -> None:
    """Routes are templates; users and videos are in no name and no attribute."""
    headers = {"x-request-id": "spans-4", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    traced.client.get("/users/traced?x=traced-1", headers=headers).raise_for_status()
    [root, *_] = traced.spans("spans-4")

    assert root.name == "GET /users/{user_id:id}"
    everything = [s.to_json() for s in traced._exporter.get_finished_spans()]
    assert "traced-1" not in "".join(everything)


def test_a_failure_is_marked(traced: Traced) -> None:
    """5xx is an error of the span, 4xx is not."""
    headers = {"x-request-id": "spans-5", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    late = {**SCORE, "timeout_ms": 1, "candidates": SCORE["candidates"] * 5_000}
    status = traced.client.post("/score", json=late, headers=headers).status_code
    headers["x-request-id"] = "spans-6"
    traced.client.get("/nowhere", headers=headers)

    assert (traced.spans("spans-5")[0].status.status_code is StatusCode.ERROR) == (status >= 500)
    assert traced.spans("spans-6")[0].status.status_code is StatusCode.UNSET
    assert traced.spans("spans-6")[0].name == "GET unmatched"


def test_traces_arrive_at_a_collector(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--traces sends them by OTLP to where OTEL_EXPORTER_OTLP_ENDPOINT says, the last at the end."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with serving(store, tmp_path, "--traces") as client:
            client.post("/score", json=SCORE).raise_for_status()
        collector.shutdown()

    assert {path for path, _ in received} == {"/v1/traces"}
    body = b"".join(body for _, body in received)
    for piece in (b"POST /score", b"thacil-ctr", b"redis", b"profile", b"rows", b"head"):
        assert piece in body


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_the_standard_variables_turn_it_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Then there is no tracer at all."""
    monkeypatch.setenv(name, value)

    assert tracer_from_environment() is None


def test_an_unknown_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those there are."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match=r"zipkin.*otlp, console and none"):
        tracer_from_environment()


def test_without_the_setting_nothing_of_it_is_needed() -> None:
    """An app is made without the extra; with the setting and without the extra it says so."""
    hide = "import sys; sys.modules['opentelemetry.exporter'] = None; "
    make = "from service.app import create_app; from service.settings import Settings; "
    make += "create_app(Settings(model_store='x', redis_url='redis://h')); "
    look = hide + make + "print('service.tracing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"

    hide = "import sys; sys.modules['opentelemetry.sdk'] = None; import service.__main__ as m; "
    start = hide + "sys.exit(m.main(['--model-store', 'x', '--traces']))"
    refused = subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, capture_output=True, check=False, text=True,
        env={**os.environ},
    )  # fmt: skip
    assert refused.returncode == 1
    assert "thacil-ctr[otel]" in refused.stderr
    assert "Traceback" not in refused.stderr
