"""Pictures of the results, for ``docs/performance.md``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("svg")
IMAGES = Path(__file__).parents[2] / "docs" / "images"
Runs = dict[str, list[float]]


def draw(results: Path) -> None:
    """Draw what there are results of."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "thacil", "font.size": 9, "axes.grid": True})
    for name, picture in {
        "head": _head,
        "http": _http,
        "overload": _overload,
        "peers": _peers,
    }.items():
        path = results / f"{name}.json"
        if not path.exists():
            continue
        runs: Runs = json.loads(path.read_text())["runs"]
        figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
        picture(axes, runs)
        figure.savefig(IMAGES / f"performance_{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _middle(runs: Runs, name: str) -> float:
    return statistics.median(runs[name])


def _head(axes: plt.Axes, runs: Runs) -> None:
    counts = sorted(int(n.split("_")[3]) for n in runs if n.startswith("live_as_written_"))
    lines = {
        "as written": "live_as_written_{}_us",
        "ours, all units alive": "live_head_{}_us",
        "ours, units as in the released weights": "pruned_head_{}_us",
        "the same, its graph in ONNX Runtime": "pruned_graph_{}_us",
    }
    for label, name in lines.items():
        axes.plot(counts, [_middle(runs, name.format(n)) for n in counts], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="candidates", ylabel="µs, one thread")
    axes.set_title("The head alone, 8 blocks")
    axes.legend()


def _http(axes: plt.Axes, runs: Runs) -> None:
    counts = sorted(int(n.split("_")[1]) for n in runs if n.endswith("_warm_p50_us"))
    for label, name in {"POST /score": "score_{}_warm", "floor": "floor_{}"}.items():
        places = range(len(counts))
        middle = [_middle(runs, f"{name.format(n)}_p50_us") for n in counts]
        tail = [_middle(runs, f"{name.format(n)}_p99_us") for n in counts]
        shift = -0.2 if label == "floor" else 0.2
        axes.bar([p + shift for p in places], middle, 0.38, label=f"{label}, p50")
        axes.plot([p + shift for p in places], tail, "k_", ms=14)
    axes.set_xticks(range(len(counts)), [f"{n} candidates" for n in counts])
    axes.set(ylabel="µs", yscale="log", title="Through HTTP, one connection, warm (dash: p99)")
    axes.legend()


def _overload(axes: plt.Axes, runs: Runs) -> None:
    shares = sorted(float(n.split("_")[0]) for n in runs if n.endswith("_goodput"))

    def line(what: str) -> list[float]:
        return [_middle(runs, f"{share}_{what}") for share in shares]

    axes.plot(shares, line("goodput"), "o-", label="goodput / peak")
    axes.plot(shares, line("refused"), "s--", label="refused share")
    axes.set(xlabel="arrivals / peak", ylim=(0, 1.15), title="Beyond what it carries")
    right = axes.twinx()
    right.plot(shares, [us / 1e3 for us in line("p99_us")], "^:", color="C3", label="p99")
    right.set(ylabel="ms", ylim=(0, None))
    right.grid(visible=False)
    handles = [axes.get_legend_handles_labels(), right.get_legend_handles_labels()]
    axes.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="center left")


def _peers(axes: plt.Axes, runs: Runs) -> None:
    names = [n.removesuffix("_200_rps") for n in runs if n.endswith("_200_rps")]
    names.sort(key=lambda name: _middle(runs, f"{name}_200_rps"))
    rates = [_middle(runs, f"{name}_200_rps") for name in names]
    bars = axes.barh([name.removeprefix("peer_") for name in names], rates)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="requests a second, 200 candidates, 8 connections", xscale="log")
