"""Writes the measured tables into ``docs/performance.md``, between its marks."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "performance.md"
RESULTS = Path(__file__).parents[1] / "results"


def write() -> None:
    """Replace every marked table by what was measured last."""
    summary: dict[str, float] = json.loads((RESULTS / "summary.json").read_text())
    text = DOC.read_text()
    for name, table in _TABLES.items():
        inside = f"<!-- {name} -->\n{table(summary)}\n<!-- /{name} -->"
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", inside, text, flags=re.DOTALL)
    DOC.write_text(text)


def _head(found: dict[str, float]) -> str:
    rows = ["| candidates, 8 blocks | 1 | 50 | 200 | 1,000 | 5,000 |", "|---|---|---|---|---|---|"]
    counts = (1, 50, 200, 1_000, 5_000)
    for label, name in {
        "units as released": "head_{}_us",
        "the same, its graph in ONNX Runtime": "head_graph_{}_us",
        "all units alive": "head_{}_live_us",
        "the same, its graph": "head_graph_{}_live_us",
    }.items():
        cells = " | ".join(_us(found, name.format(n)) for n in counts)
        rows.append(f"| {label}, µs | {cells} |")
    rows += [
        "",
        "| at 200 candidates | as released | all alive |",
        "|---|---|---|",
        _pair(found, "times faster than its graph", "head_200_x_graph"),
        _pair(found, "times faster than as written", "head_200_x_as_written"),
        _pair(found, "times faster than the whole network", "head_200_x_whole_network"),
    ]
    share = found.get("head_1000_share_of_matrix_rate", 0.0)
    rows += [
        "",
        f"At 1,000 candidates with all units alive it runs at {share:.0%} of the machine's",
    ]
    rows[-1] += f" float32 matrix rate ({found.get('matrix_gflops', 0):.0f} GFLOP/s on one thread)."
    return "\n".join(rows)


def _pair(found: dict[str, float], label: str, name: str) -> str:
    return f"| {label} | {found.get(name, 0):.1f} | {found.get(f'{name}_live', 0):.1f} |"


def _http(found: dict[str, float]) -> str:
    rows = ["| candidates | 1 | 50 | 200 | 1,000 |", "|---|---|---|---|---|"]
    lines = {
        "`/score`, warm, p50 µs": "score_{}_warm_p50_us",
        "`/score`, warm, p99 µs": "score_{}_warm_p99_us",
        "CPU µs a request": "score_{}_cpu_us",
        "floor, p50 µs": "floor_{}_p50_us",
        "floor, p99 µs": "floor_{}_p99_us",
        "floor without a task, p50 µs": "floor_short_{}_p50_us",
        "floor as FastAPI endpoint, p50 µs": "floor_fastapi_{}_p50_us",
    }
    for label, name in lines.items():
        cells = " | ".join(_us(found, name.format(n)) for n in (1, 50, 200, 1_000))
        rows.append(f"| {label} | {cells} |")
    rows += [
        "",
        "| 200 candidates | |",
        "|---|---|",
        f"| one worker, 8 connections | {found.get('score_200_rps', 0):,.0f} requests/s |",
        f"| two workers | {found.get('score_200_two_workers_rps', 0):,.0f} requests/s |",
        f"| the floor | {found.get('floor_200_rps', 0):,.0f} requests/s |",
        (
            f"| a click before each score, p50 | {_us(found, 'score_200_cold_p50_us')} µs,"
            f" {_us(found, 'score_200_cold_adds_us')} more than warm |"
        ),
    ]
    for share in (25, 50, 75):
        p50, p99 = (_us(found, f"score_200_open_{share}_p{p}_us") for p in (50, 99))
        rows.append(f"| arrivals at {share} % of that rate | p50 {p50} µs, p99 {p99} µs |")
    return "\n".join(rows)


def _peers(found: dict[str, float]) -> str:
    rows = ["| 200 candidates, 8 connections | requests/s | p50 ms | p99 ms |", "|---|---|---|---|"]
    names = sorted(
        (
            name.removesuffix("_200_rps")
            for name in found
            if re.match(r"(peer_\w+|service\w*)_200_rps", name)
        ),
        key=lambda name: -found[f"{name}_200_rps"],
    )
    labels = {
        "service": "**this service**, two workers",
        "service_one_worker": "one worker",
        "peer_plain": "plain FastAPI, whole network",
    }
    labels |= {"peer_ray": "Ray Serve", "peer_triton": "Triton (pytriton)"}
    labels |= {"peer_litserve": "LitServe", "peer_bentoml": "BentoML"}
    labels |= {
        "service_graph": "two workers, the head's graph in ONNX Runtime",
        "peer_litserve_graph": "LitServe, the head's graph in ONNX Runtime",
    }
    for name in names:
        p50, p99 = (found[f"{name}_200_p{p}_us"] / 1e3 for p in (50, 99))
        rate = found[f"{name}_200_rps"]
        rows.append(f"| {labels.get(name, name)} | {rate:,.0f} | {p50:,.1f} | {p99:,.1f} |")
    best, plain = found.get("score_200_x_best_peer_rps"), found.get("score_200_x_plain_rps")
    if best and plain:
        rows += ["", f"{best:.1f} times the best framework, {plain:.0f} times the plain service."]
    if graph := found.get("score_200_graph_x_best_peer_rps"):
        rows[-1] += f" With the head's graph on both sides {graph:.1f} times the best framework."
    return "\n".join(rows)


def _rest(found: dict[str, float]) -> str:
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            *(
                f"| events a second, {n} a call | {found.get(f'events_{n}_per_s', 0):,.0f} |"
                for n in (1, 10, 100)
            ),
            f"| goodput at twice the peak | {found.get('overload_2x_goodput_share', 0):.0%} of it |",
            f"| the best at lower rates | {found.get('overload_best_goodput_share', 0):.0%} of it |",
            (
                f"| p99 of what is accepted then | {found.get('overload_2x_p99_us', 0) / 1e3:,.0f} ms,"
                f" deadline {found.get('overload_deadline_us', 0) / 1e3:,.0f} ms |"
            ),
            f"| memory of a worker, empty | {found.get('rss_empty_mb', 0):,.0f} MB |",
            f"| with a million rows | {found.get('rss_million_rows_mb', 0):,.0f} MB |",
            f"| from start to ready, 20,000 rows warmed | {found.get('ready_s', 0):.2f} s |",
        ]
    )


def _us(found: dict[str, float], name: str) -> str:
    return f"{found[name]:,.0f}" if name in found else "-"


def _gpu(found: dict[str, float]) -> str:
    clients = sorted(int(n.split("_")[1]) for n in found if re.match(r"gpu_\d+_p50_us", n))
    if not clients:
        return (
            "Not measured yet: `make bench ONLY=gpu` fills this table where there is a CUDA device."
        )
    rows = [
        "| clients, 200 candidates each | candidates/s | p50 µs | p99 µs | time outside kernels |",
        "|---|---|---|---|---|",
    ]
    for count in clients:
        rate, idle = (
            found[f"gpu_{count}_{what}"] for what in ("candidates_per_s", "outside_kernels_share")
        )
        p50, p99 = (_us(found, f"gpu_{count}_p{p}_us") for p in (50, 99))
        rows.append(f"| {count} | {rate:,.0f} | {p50} | {p99} | {idle:.0%} |")
    return "\n".join(rows)


_TABLES = {"head": _head, "http": _http, "peers": _peers, "rest": _rest, "gpu": _gpu}
