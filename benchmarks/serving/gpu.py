"""On a CUDA device: candidates a second and latency by the number of clients, and idle kernels.

The share of time outside kernels is one minus what nvidia-smi calls utilization: the share of its
sampling period in which any kernel ran. Without a device nothing is measured.
"""

from __future__ import annotations

import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.serving import load
from benchmarks.serving.http import requests, stand, warm
from benchmarks.serving.scenario import service
from model_store import find_device

CLIENTS = (1, 8, 32, 128)
CANDIDATES = 200
_SAMPLE_MS = 100
Runs = dict[str, list[float]]


def measure_gpu(*, rounds: int, seconds: float) -> tuple[dict[str, float], Runs]:
    """Load one worker on the device from ever more connections; nothing without a device."""
    runs: Runs = defaultdict(list)
    if find_device("auto").kind != "cuda":
        print("gpu       no CUDA device here: nothing is measured", flush=True)
        return {}, {}
    with stand() as ground:
        log = ground.directory / "service.log"
        with service(ground.store, ground.redis_url, log, CTR_DEVICE="cuda") as ours:
            warm(ours)
            asked = requests(CANDIDATES)
            for _ in range(rounds):
                for clients in CLIENTS:
                    with utilization() as samples:
                        found = load.closed_loop(
                            ours.port, asked, connections=clients, seconds=seconds
                        )
                    name = f"gpu_{clients}"
                    runs[f"{name}_candidates_per_s"].append(CANDIDATES * found.rate)
                    runs[f"{name}_p50_us"].append(found.percentile_us(50))
                    runs[f"{name}_p99_us"].append(found.percentile_us(99))
                    runs[f"{name}_outside_kernels_share"].append(outside_kernels(samples))
    return {name: statistics.median(values) for name, values in runs.items()}, dict(runs)


@contextmanager
def utilization() -> Iterator[list[str]]:
    """Sample the first device while inside; the lines are there once it is left."""
    query = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0")
    command = ["nvidia-smi", *query, f"--loop-ms={_SAMPLE_MS}"]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lines
        finally:
            process.terminate()
            lines += process.communicate()[0].splitlines()


def outside_kernels(samples: list[str]) -> float:
    """Return the mean share of time in which no kernel ran, of samples in percent."""
    shares = [float(line) for line in samples if line.strip().isdigit()]
    # The first ones reach back to before the load.
    used = shares[len(shares) // 4 :]
    return 1.0 - statistics.fmean(used) / 100 if used else float("nan")
