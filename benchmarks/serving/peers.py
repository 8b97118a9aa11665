"""The same work behind other serving frameworks, and behind a plain service without our design.

Each framework is installed into an environment of its own under ``var/bench`` and serves as its
documentation recommends, with a worker beside its HTTP server and our compiled head; the best of
them and the service are measured with the head's graph in ONNX Runtime, too. One that cannot be
installed or does not start is said so and left out. Before it is measured it must answer as the service does. Every round measures all of
them in turn, each alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import load
from benchmarks.serving.head import whole_graph
from benchmarks.serving.http import Stand, requests, stand
from benchmarks.serving.scenario import (
    ROOT,
    USERS,
    Server,
    free_port,
    score_bodies,
    server,
    service,
)

VENVS = ROOT / "var" / "bench"
SERVERS = Path(__file__).parent / "peer_servers"
NEEDED = (
    *("numpy", "onnxruntime-gpu", "redis[hiredis]", "orjson", "pydantic", "pydantic-settings"),
    *("prometheus-client", "tqdm", "uvloop", "httptools"),
)
Runs = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A framework.

    Attributes:
        name: in the results.
        package: what pip installs; empty for our own environment.
        environment: whose environment it shares, if not one of its own.
        command: after the environment's directory of programs, with ``{port}``.
        ready: path that answers 200 once it is up.
        path: that takes requests.
        wrapped: whether bodies go in and out as a string tensor.
        system_python: whether it needs the system's interpreter: Triton links the system's
            libpython, and another one's standard library does not fit that.
        env: variables.
    """

    name: str
    package: str
    command: Sequence[str]
    ready: str
    path: str = "/score"
    wrapped: bool = False
    system_python: bool = False
    environment: str = ""
    env: dict[str, str] = field(default_factory=dict)


PEERS = (
    Peer("litserve", "litserve", ("python", f"{SERVERS}/litserve_server.py", "{port}"), "/health"),
    Peer(
        "litserve_graph",
        "litserve",
        ("python", f"{SERVERS}/litserve_server.py", "{port}"),
        "/health",
        environment="litserve",
        env={"BENCH_HEAD": "graph"},
    ),
    Peer(
        "bentoml",
        "bentoml",
        (
            *("bentoml", "serve", "benchmarks.serving.peer_servers.bentoml_server:Ranker"),
            *("--port", "{port}", "--host", "127.0.0.1"),
        ),
        "/readyz",
        env={"BENTOML_DO_NOT_TRACK": "1"},
    ),
    Peer(
        "ray",
        "ray[serve]",
        ("python", f"{SERVERS}/ray_server.py", "{port}"),
        "/-/routes",
        env={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Peer(
        "triton",
        "nvidia-pytriton",
        ("python", f"{SERVERS}/triton_server.py", "{port}"),
        "/v2/models/score/ready",
        path="/v2/models/score/infer",
        wrapped=True,
        system_python=True,
    ),
    Peer("plain", "", ("python", f"{SERVERS}/plain_server.py", "{port}"), "/health/ready"),
)


def measure_peers(*, rounds: int, seconds: float) -> tuple[dict[str, float], Runs]:
    """Requests a second and latency at 200 candidates, of all who can be measured here."""
    runs: Runs = defaultdict(list)
    with stand() as ground:
        whole = ground.directory / "whole.onnx"
        whole.write_bytes(whole_graph(pruned=True))
        expected = _expected(ground)
        fit = [peer for peer in PEERS if _installed(peer)]
        for _ in range(rounds):
            # A worker for each core of a small machine, as we recommend; and one.
            for name, workers, head in (
                ("service", 2, "auto"),
                ("service_one_worker", 1, "auto"),
                ("service_graph", 2, "graph"),
            ):
                log = ground.directory / "service.log"
                with service(
                    ground.store, ground.redis_url, log, workers=workers, CTR_HEAD=head
                ) as ours:
                    _measure(name, ours, requests(200), runs, seconds)
            for peer in list(fit):
                try:
                    with _running(peer, ground, whole) as running:
                        _check(peer, running, expected)
                        _measure(f"peer_{peer.name}", running, _requests(peer), runs, seconds)
                except SystemExit as exc:
                    fit.remove(peer)
                    print(f"peers     {peer.name} left out: {exc}", flush=True)
    return _summary(runs), dict(runs)


def _summary(runs: Runs) -> dict[str, float]:
    summary = {name: statistics.median(values) for name, values in runs.items()}
    ours = summary["service_200_rps"]
    rates = {p.name: summary.get(f"peer_{p.name}_200_rps") for p in PEERS if p.name != "plain"}
    found = [rate for rate in rates.values() if rate]
    if found:
        summary["score_200_x_best_peer_rps"] = ours / max(found)
    graph, of_peer = (summary.get(f"{n}_200_rps") for n in ("service_graph", "peer_litserve_graph"))
    if graph and of_peer:
        summary["score_200_graph_x_best_peer_rps"] = graph / of_peer
    if "peer_plain_200_rps" in summary:
        summary["score_200_x_plain_rps"] = ours / summary["peer_plain_200_rps"]
    return summary


def _installed(peer: Peer) -> bool:
    if not peer.package:
        return True
    place = VENVS / (peer.environment or peer.name)
    mark = place / ".installed"
    if mark.exists():
        return True
    print(f"peers     installing {peer.package} into {place.relative_to(ROOT)}", flush=True)
    python = _system_python() if peer.system_python else sys.executable
    made = subprocess.run([python, "-m", "venv", str(place)], capture_output=True, check=False)
    if made.returncode:
        print(f"peers     {peer.name} left out: {python} makes no environment", flush=True)
        return False
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", peer.package, *NEEDED]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"peers     {peer.name} left out: {done.stderr.strip()[-300:]}", flush=True)
        return False
    mark.touch()
    return True


def _system_python() -> str:
    place = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    return str(place) if place.exists() else sys.executable


@contextmanager
def _running(peer: Peer, ground: Stand, whole: Path) -> Iterator[Server]:
    port = free_port()
    programs = (
        VENVS / (peer.environment or peer.name) / "bin"
        if peer.package
        else Path(sys.executable).parent
    )
    first, *rest = (part.format(port=port) for part in peer.command)
    env = {
        "BENCH_STORE": str(ground.store.root),
        "BENCH_REDIS": ground.redis_url,
        "BENCH_WHOLE": str(whole),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        **peer.env,
    }
    log = ground.directory / f"{peer.name}.log"
    command = [str(programs / first), *rest]
    with server(command, port=port, path=peer.ready, log=log, env=env, seconds=90) as running:
        yield running


def _requests(peer: Peer) -> list[bytes]:
    bodies = score_bodies(USERS, 200)
    return [load.post(peer.path, _wrapped(body) if peer.wrapped else body) for body in bodies]


def _wrapped(body: bytes) -> bytes:
    tensor = {"name": "body", "shape": [1, 1], "datatype": "BYTES", "data": [body.decode()]}
    return json.dumps({"inputs": [tensor]}).encode()


def _expected(ground: Stand) -> list[tuple[str, float]]:
    """Have the service compute and store all profiles; return its answer to the first request."""
    with service(ground.store, ground.redis_url, ground.directory / "service.log") as ours:
        answers = [load.one(ours.port, request) for request in requests(200)]
    return _ranking(answers[0][1])


def _ranking(body: bytes) -> list[tuple[str, float]]:
    return [(row["video_id"], row["score"]) for row in json.loads(body)["results"]]


def _check(peer: Peer, running: Server, expected: list[tuple[str, float]]) -> None:
    status, body = load.one(running.port, _requests(peer)[0])
    if status != 200:  # noqa: PLR2004
        raise SystemExit(f"{peer.path} answered {status}: {body[:200]!r}")
    if peer.wrapped:
        body = json.loads(body)["outputs"][0]["data"][0].encode()
    found = dict(_ranking(body))
    worst = max(abs(found[video_id] - score) for video_id, score in expected)
    if worst > 1e-5:  # noqa: PLR2004
        raise SystemExit(f"its scores differ by {worst:.2g}: not the same work")


def _measure(
    name: str, running: Server, asked: Sequence[bytes], runs: Runs, seconds: float
) -> None:
    # Once all, so that every row is in memory: of the slow ones, some.
    load.closed_loop(running.port, asked, connections=4, seconds=min(seconds, 2.0))
    found = load.closed_loop(running.port, asked, connections=8, seconds=seconds)
    if set(found.statuses) != {200}:
        raise SystemExit(f"statuses {found.statuses}")
    runs[f"{name}_200_rps"].append(found.rate)
    runs[f"{name}_200_p50_us"].append(found.percentile_us(50))
    runs[f"{name}_200_p99_us"].append(found.percentile_us(99))
