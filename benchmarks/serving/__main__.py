"""All serving benchmarks: ``python -m benchmarks.serving [--only PART]``.

Writes ``results/summary.json`` (one flat object, name -> number), ``results/PART.json`` (every run)
and the pictures of ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import onnxruntime

from benchmarks.serving import page
from benchmarks.serving.gpu import measure_gpu
from benchmarks.serving.head import measure_head
from benchmarks.serving.http import measure_events, measure_http, measure_overload
from benchmarks.serving.memory import measure_memory
from benchmarks.serving.peers import measure_peers
from benchmarks.serving.pictures import draw

RESULTS = Path(__file__).parents[1] / "results"
Figures = tuple[dict[str, float], dict[str, list[float]]]


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Figures]]:
    """Return what can be measured, by name."""
    turns = {"rounds": options.rounds, "seconds": options.seconds}
    return {
        "head": lambda: measure_head(rounds=options.rounds),
        "http": lambda: measure_http(**turns),
        "overload": lambda: measure_overload(**turns),
        "peers": lambda: measure_peers(**turns),
        "events": lambda: measure_events(**turns),
        "memory": lambda: measure_memory(rounds=options.rounds),
        "gpu": lambda: measure_gpu(**turns),
    }


def main() -> None:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="parts, by comma: head, http, overload, ...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load and round")
    options = parser.parse_args()
    possible = parts(options)
    # What people call http includes what happens beyond what it carries.
    names = [name for name in options.only.split(",") if name] or list(possible)
    names += ["overload"] if "http" in names and "overload" not in names else []
    unknown = sorted(set(names) - set(possible))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(possible)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        figures, runs = possible[name]()
        if not figures:
            continue
        machine = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
        text = json.dumps({"machine": machine, "runs": runs})
        (RESULTS / f"{name}.json").write_text(text + "\n")
        found = {key: float(f"{value:.4g}") for key, value in figures.items()}
        for key, value in sorted(found.items()):
            print(f"{name:9s} {key:40s} {value:14,.3f}", flush=True)
        summary |= {key: value for key, value in found.items() if math.isfinite(value)}
        path.write_text(json.dumps(dict(sorted(summary.items())), indent=2) + "\n")
    draw(RESULTS)
    page.write()


if __name__ == "__main__":
    main()
