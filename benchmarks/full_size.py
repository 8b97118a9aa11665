"""A log of MicroVideo-1.7M's size: how long reading and an epoch take, and in how much memory.

``make bench-full-size`` writes ``benchmarks/results/full_size.json``. The log is made on the first
call (``synthesize --full-size``, 4 GB under ``var/``). Memory is what the process holds beside
mapped files (``RssAnon``), looked at twenty times a second. ``--seconds`` ends the epoch early;
its time is then an extrapolation, and marked as one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "full_size.json"
LOAD = """
from pathlib import Path
from training.interactions import load_click_log
log = load_click_log(Path({log!r}))
print(len(log.train), len(log.test), *log.train_features.shape)
"""
EPOCH = "[optim]\nmax_epochs = 1\n[execution]\ncheckpoint_minutes = 5\n"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        peak_mib: most memory beside mapped files.
    """

    seconds: float
    peak_mib: float


def run(command: Sequence[str], *, end_after: float | None = None) -> Cost:
    """Run a command to its end, or ask it for one after so many seconds, and watch its memory."""
    begin, peak, asked = time.perf_counter(), 0, False
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**os.environ})
    while process.poll() is None:
        peak = max(peak, anonymous_kib(process.pid))
        spent = time.perf_counter() - begin
        if end_after is not None and spent > end_after and not asked:
            process.send_signal(signal.SIGTERM)
            asked = True
        time.sleep(0.05)
    if process.returncode not in {0, 128 + signal.SIGTERM if asked else 0}:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Cost(time.perf_counter() - begin, peak / 1024)


def anonymous_kib(pid: int) -> int:
    """Memory of a process beside mapped files; 0 when it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def epoch(log: Path, run_directory: Path, *, end_after: float | None) -> dict[str, float]:
    """Train an epoch: rows, examples a second, seconds, memory."""
    config = run_directory.with_suffix(".toml")
    config.write_text(EPOCH)
    command = ["-m", "training", "fit", "--data", str(log), "--config", str(config)]
    cost = run([*command, "--out", str(run_directory)], end_after=end_after)
    done = torch.load(run_directory / "checkpoint.pt", weights_only=True)["progress"]
    saved = json.loads((run_directory / "config.json").read_text())
    if done["history"]:
        entry = done["history"][-1]
        rows, seconds, share = entry["train_rows"], entry["train_seconds"], 1.0
    else:
        learnt = saved["log"]["train_rows"] * (1 - saved["data"]["validation_item_share"])
        rows, seconds, share = done["rows"], done["seconds"], done["rows"] / learnt
    return {
        "epoch_share_measured": share,
        "epoch_train_seconds": seconds / share,
        "examples_per_second": rows / seconds,
        "fit_seconds": cost.seconds,
        "fit_peak_mib": cost.peak_mib,
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=ROOT / "var" / "full_size")
    parser.add_argument("--seconds", type=float, help="end the epoch after so long")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, float] = {"threads": torch.get_num_threads()}
    if not (options.log / "world.json").exists():
        command = ["-m", "training", "synthesize", "--full-size", "--out", str(options.log)]
        results |= named("synthesize", run(command))
    shutil.rmtree(options.log / ".columns", ignore_errors=True)
    load = ["-c", LOAD.format(log=str(options.log))]
    results |= named("first_load", run(load))
    results |= named("later_load", run(load))
    with TemporaryDirectory() as directory:
        results |= epoch(options.log, Path(directory) / "run", end_after=options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.write_text(json.dumps({**known, **results}, indent=2) + "\n")
    for name, value in results.items():
        print(f"{name:28s} {value:12,.2f}")


def named(name: str, cost: Cost) -> dict[str, float]:
    """Flatten a cost under a name."""
    return {f"{name}_{key}": value for key, value in asdict(cost).items()}


if __name__ == "__main__":
    main()
