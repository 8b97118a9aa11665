"""``POST /score`` through uvicorn, beside the floor; ``POST /events``; memory and start.

One worker unless said otherwise. Servers stand beside one another and are loaded in turns, so that
what the machine does meanwhile falls on all of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import load
from benchmarks.serving.scenario import (
    START_MS,
    USERS,
    VIDEOS,
    Server,
    filled,
    free_port,
    make_network,
    publish_network,
    redis,
    score_bodies,
    server,
    service,
    user_id,
    video_id,
)
from model_store import ModelStore

COUNTS = (1, 50, 200, 1_000)
FLOORS = ("ours", "short", "fastapi")
LOADS = (0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
TWICE = 2.0
TWICE_MORE = 7
"""Times more than the other loads, in each round: it is the one that is judged."""
Runs = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Stand:
    """What the servers share: a store, a filled Redis, a directory for logs."""

    store: ModelStore
    redis_url: str
    directory: Path


@contextmanager
def stand(*, pruned: bool = True) -> Iterator[Stand]:
    """Set it up."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        store = publish_network(directory / "store", make_network(pruned=pruned))
        with redis(directory / "redis") as url:
            yield Stand(store, filled(url), directory)


@contextmanager
def floor(kind: str, answers: Path) -> Iterator[Server]:
    """Run a floor."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.floor", "--kind", kind]
    command += ["--answers", str(answers), "--port", str(port)]
    with server(command, port=port, log=answers.with_suffix(".log")) as running:
        yield running


def requests(count: int) -> list[bytes]:
    """Make a request of each user for so many candidates."""
    return [load.post("/score", body) for body in score_bodies(USERS, count)]


def clicks(*, per_call: int, calls: int, start_ms: int) -> list[bytes]:
    """Make calls of ``POST /events``, each of one user, of clicks that are new."""
    made = []
    for call in range(calls):
        events = [
            {
                "user_id": user_id((call + place) % USERS),
                "video_id": video_id((7 * call + place) % VIDEOS),
                "timestamp": start_ms + 100 * call + place,
                "event_id": f"{start_ms}-{call}-{place}",
            }
            for place in range(per_call)
        ]
        made.append(load.post("/events", json.dumps({"events": events}).encode()))
    return made


def warm(running: Server) -> dict[str, str]:
    """Ask for everything once; return an answer by number of candidates."""
    answers = {}
    for count in COUNTS:
        asked = requests(count)
        for request in asked:
            status, body = load.one(running.port, request)
            if status != 200:  # noqa: PLR2004
                raise SystemExit(f"/score answered {status}: {body[:300].decode()}")
        answers[str(count)] = body.decode()
    return answers


def measure_http(*, rounds: int, seconds: float) -> tuple[dict[str, float], Runs]:
    """Latency and throughput of scores, warm and cold, beside the floors."""
    runs: Runs = defaultdict(list)
    with ExitStack() as stack:
        ground = stack.enter_context(stand())
        ours = stack.enter_context(
            service(ground.store, ground.redis_url, ground.directory / "service.log")
        )
        answers = ground.directory / "answers.json"
        answers.write_text(json.dumps(warm(ours)))
        runs["ready_s"].append(ours.ready_seconds)
        floors = {kind: stack.enter_context(floor(kind, answers)) for kind in FLOORS}
        asked = {count: requests(count) for count in COUNTS}
        for turn in range(rounds):
            _latencies(ours, floors, asked, runs, seconds)
            _throughput(ours, floors["ours"], asked[200], runs, seconds)
            new = clicks(per_call=1, calls=20_000, start_ms=START_MS + 10**7 * (turn + 1))
            cold = load.closed_loop(
                ours.port, asked[200], connections=1, seconds=seconds, between=new
            )
            _note(runs, "score_200_cold", cold)
        peak = statistics.median(runs["score_200_rps"])
        for share in (0.25, 0.5, 0.75):
            found = load.open_loop(ours.port, asked[200], rate=share * peak, seconds=2 * seconds)
            name = f"score_200_open_{100 * share:.0f}"
            _note(runs, name, found, strict=False)
            runs[f"{name}_refused"].append(1 - len(found.latencies) / sum(found.statuses.values()))
        with service(
            ground.store, ground.redis_url, ground.directory / "two.log", workers=2
        ) as two:
            warm(two)
            for _ in range(rounds):
                both = load.closed_loop(two.port, asked[200], connections=8, seconds=seconds)
                runs["score_200_two_workers_rps"].append(both.rate)
    summary = {name: statistics.median(values) for name, values in runs.items()}
    for count in (200, 1_000):
        summary[f"score_{count}_over_floor_us"] = statistics.median(
            a - b
            for a, b in zip(
                runs[f"score_{count}_warm_p50_us"], runs[f"floor_{count}_p50_us"], strict=True
            )
        )
    pairs = zip(runs["score_200_cold_p50_us"], runs["score_200_warm_p50_us"], strict=True)
    summary["score_200_cold_adds_us"] = statistics.median(a - b for a, b in pairs)
    return summary, dict(runs)


def _latencies(
    ours: Server,
    floors: dict[str, Server],
    asked: dict[int, Sequence[bytes]],
    runs: Runs,
    seconds: float,
) -> None:
    for count, of_count in asked.items():
        one = {"connections": 1, "seconds": seconds}
        cpu = ours.cpu_seconds()
        found = load.closed_loop(ours.port, of_count, **one)  # type: ignore[arg-type]
        _note(runs, f"score_{count}_warm", found)
        spent = (ours.cpu_seconds() - cpu) / len(found.latencies)
        runs[f"score_{count}_cpu_us"].append(1e6 * spent)
        for kind, running in floors.items():
            name = "floor" if kind == "ours" else f"floor_{kind}"
            found = load.closed_loop(running.port, of_count, **one)  # type: ignore[arg-type]
            _note(runs, f"{name}_{count}", found)


def _throughput(
    ours: Server, floor_: Server, asked: Sequence[bytes], runs: Runs, seconds: float
) -> None:
    for name, running in (("score_200", ours), ("floor_200", floor_)):
        found = load.closed_loop(running.port, asked, connections=8, seconds=seconds)
        runs[f"{name}_rps"].append(found.rate)
        runs[f"{name}_8_clients_p50_us"].append(found.percentile_us(50))
        runs[f"{name}_8_clients_p99_us"].append(found.percentile_us(99))


def _note(runs: Runs, name: str, found: load.Measured, *, strict: bool = True) -> None:
    if strict and set(found.statuses) != {200}:
        raise SystemExit(f"{name}: statuses {found.statuses}")
    for share in (50, 99):
        runs[f"{name}_p{share}_us"].append(found.percentile_us(share))


def measure_overload(*, rounds: int, seconds: float) -> tuple[dict[str, float], Runs]:
    """Goodput and latency of accepted requests at 0.5 to 3 times of what the service carries.

    What it carries is what eight callers get who ask again at once: its core never waits. That is
    measured before and after each load, which is compared with the mean of both, all of them short:
    machines are not as fast from one second to the next. Arrivals at a fixed rate seldom reach that, so the best
    goodput at rates below twice that is noted, too.
    """
    runs: Runs = defaultdict(list)
    deadline_ms = 250
    with ExitStack() as stack:
        ground = stack.enter_context(stand())
        log = ground.directory / "service.log"
        ours = stack.enter_context(
            service(ground.store, ground.redis_url, log, CTR_SCORE_TIMEOUT_MS=str(deadline_ms))
        )
        warm(ours)
        asked = requests(200)
        for _ in range(rounds):
            before = _peak(ours, asked, runs, seconds)
            for share in LOADS + (TWICE,) * TWICE_MORE:
                found = load.open_loop(
                    ours.port, asked, rate=share * before, seconds=seconds / 2, connections=512
                )
                after = _peak(ours, asked, runs, seconds)
                good, total = len(found.latencies), sum(found.statuses.values())
                middle = (before + after) / 2
                runs[f"{share}_offered"].append(share * before / middle)
                runs[f"{share}_goodput"].append(found.rate / middle)
                runs[f"{share}_p50_us"].append(found.percentile_us(50))
                runs[f"{share}_p99_us"].append(found.percentile_us(99))
                runs[f"{share}_refused"].append(1 - good / total)
                before = after
    twice = statistics.median(runs[f"{TWICE}_goodput"])
    best = max(statistics.median(runs[f"{share}_goodput"]) for share in LOADS if share < TWICE)
    summary = {
        "overload_peak_rps": statistics.median(runs["peak_rps"]),
        "overload_2x_goodput_share": twice,
        "overload_best_goodput_share": best,
        "overload_2x_of_best_share": twice / best,
        "overload_2x_p99_us": statistics.median(runs[f"{TWICE}_p99_us"]),
        "overload_deadline_us": 1e3 * deadline_ms,
    }
    return summary, dict(runs)


def _peak(ours: Server, asked: Sequence[bytes], runs: Runs, seconds: float) -> float:
    peak = load.closed_loop(ours.port, asked, connections=8, seconds=seconds / 4).rate
    runs["peak_rps"].append(peak)
    return peak


def measure_events(*, rounds: int, seconds: float) -> tuple[dict[str, float], Runs]:
    """Events a second at 1, 10 and 100 a call, from eight connections."""
    runs: Runs = defaultdict(list)
    with stand() as ground:
        log = ground.directory / "service.log"
        with service(ground.store, ground.redis_url, log) as ours:
            for turn in range(rounds):
                for per_call in (1, 10, 100):
                    start = START_MS + 10**9 * (turn + 1) + 10**8 * len(str(per_call))
                    new = clicks(per_call=per_call, calls=30_000 // per_call**1, start_ms=start)
                    found = load.closed_loop(ours.port, new, connections=8, seconds=seconds)
                    runs[f"events_{per_call}_per_s"].append(per_call * found.rate)
                    runs[f"events_{per_call}_p50_us"].append(found.percentile_us(50))
                    if found.statuses.keys() != {200}:
                        raise SystemExit(f"/events answered {found.statuses}")
    return {name: statistics.median(values) for name, values in runs.items()}, dict(runs)
