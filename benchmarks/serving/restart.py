"""What a rolling restart costs: ``python -m benchmarks.serving.restart``.

Two workers, a steady load of 200 requests a second, rankings of 100 candidates and clicks; in the
middle of it SIGHUP replaces one worker after the other. No request is sent twice. Writes
``results/restart.json``; exit status 1 where a request was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving import load
from benchmarks.serving.http import clicks
from benchmarks.serving.scenario import (
    START_MS,
    Server,
    filled,
    make_network,
    publish_network,
    redis,
    score_bodies,
    service,
)
from benchmarks.serving.steady import Outcome, keep_steady

RESULTS = Path(__file__).parents[1] / "results" / "restart.json"
_STEADY_SECONDS = 5.0
_LONGEST_SECONDS = 90.0


def finished(log: Path) -> int:
    """Count the workers that have ended, by the log."""
    return log.read_text().count("Finished server process")


async def restarted(running: Server, log: Path, *, rate: float) -> dict[str, float]:
    """Load, restart, and say what became of it."""
    scores = [load.post("/score", body) for body in score_bodies(200, 100)]
    events = clicks(per_call=1, calls=50, start_ms=START_MS + 10_000_000)
    requests = [
        request for four in range(50) for request in (*scores[four * 4 :][:4], events[four])
    ]
    stop = asyncio.Event()
    loading = asyncio.create_task(keep_steady(running.port, requests, rate=rate, stop=stop))
    await asyncio.sleep(_STEADY_SECONDS)
    begin = time.monotonic()
    os.kill(running.process.pid, signal.SIGHUP)
    while finished(log) < 2:  # noqa: PLR2004  both workers
        if time.monotonic() > begin + _LONGEST_SECONDS:
            raise SystemExit(f"the workers were not replaced: see {log}")
        await asyncio.sleep(0.05)
    end = time.monotonic()
    await asyncio.sleep(_STEADY_SECONDS)
    stop.set()
    return figures(await loading, begin, end, rate)


def figures(outcome: Outcome, begin: float, end: float, rate: float) -> dict[str, float]:
    """Return what is reported, latencies before and during the restart apart."""
    print(f"failures: {dict(outcome.failures) or 'none'}")
    return {
        "rate": rate,
        "sent": outcome.sent,
        "lost": outcome.lost,
        "restart_seconds": round(end - begin, 2),
        "before_p50_ms": round(outcome.percentile_ms(50, until=begin), 2),
        "before_p99_ms": round(outcome.percentile_ms(99, until=begin), 2),
        "during_p50_ms": round(outcome.percentile_ms(50, since=begin, until=end), 2),
        "during_p99_ms": round(outcome.percentile_ms(99, since=begin, until=end), 2),
    }


def main() -> int:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        store = publish_network(directory / "store", make_network(pruned=True))
        with redis(directory / "redis") as url:
            filled(url)
            for number in range(options.rounds):
                log = directory / f"service-{number}.log"
                with service(store, url, log, workers=2, log_level="info") as running:
                    rounds.append(asyncio.run(restarted(running, log, rate=options.rate)))
                print(json.dumps(rounds[-1]), flush=True)
    RESULTS.write_text(json.dumps(rounds, indent=2) + "\n")
    return 1 if any(found["lost"] for found in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
