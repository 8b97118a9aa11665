"""The whole path in one command: a click log, a trained model, a service, a report.

Speaks to the trainer through its command line and to the service over HTTP, as anyone would.
Exit status 0 when the served scores rank as the offline ones do, 1 when not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from training.metrics import mean_auc

VIDEOS_PER_CALL = 1_000
EVENTS_PER_CALL = 1_000
CANDIDATES_PER_CALL = 200
CONNECTIONS = 4
SIZE = ("--users", "600", "--videos", "6000", "--interactions", "150000")
"""Of the synthetic log: learned from in under a minute."""
READY_SECONDS = 120.0
# Equal to four digits, and never by the luck of rounding.
AUC_TOLERANCE = 5e-5

_STARTED = time.monotonic()


class DemoError(Exception):
    """A step failed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Log:
    """One csv of the log with its features: I impressions, V videos, F feature values.

    Attributes:
        space: ``train`` or ``test``; the two number their videos separately.
        users: [I].
        items: [I], rows of ``features``.
        categories: [I].
        labels: [I], 1 for a click.
        times: [I], as in the file.
        features: [V, F].
    """

    space: str
    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]

    def video_id(self, item: int) -> str:
        """Name a video so that the two spaces do not meet."""
        return f"{self.space}-{item}"


@dataclass(frozen=True, slots=True)
class Served:
    """What the service answered: score of each impression (NaN if not asked), seconds a call."""

    scores: npt.NDArray[np.float64]
    call_seconds: npt.NDArray[np.float64]
    wall_seconds: float


def say(text: str) -> None:
    """Print one progress line with the time since the start."""
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", flush=True)


def training(*arguments: str | Path, quiet: bool = False) -> str:
    """Run one verb of the trainer and return its last line (its progress goes to the terminal).

    Raises:
        DemoError: the verb failed.
    """
    command = [sys.executable, "-m", "training", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE if quiet else None, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"{shlex.join(command[1:])} ended with status {done.returncode}")
    return (done.stdout or "").strip().rpartition("\n")[2]


def read_log(data: Path, space: str) -> Log:
    """Read ``SPACE_data.csv`` and its features."""
    path = data / f"{space}_data.csv"
    with path.open() as file:
        names = file.readline().strip().split(",")
    columns = dict(
        zip(names, np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2).T, strict=True)
    )
    return Log(
        space=space,
        users=columns["user_id"],
        items=columns["item_id"],
        categories=columns["cate_id"],
        labels=columns["is_click"],
        times=columns["timestamp"],
        features=np.load(data / f"{space}_cover_image_feature.npy", mmap_mode="r"),
    )


@contextmanager
def serving(store: Path, work: Path, port: int) -> Iterator[str]:
    """Run the service on fresh state, yield its address, stop it at the end.

    Raises:
        DemoError: it ended, or was not ready in time.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / "service.log"
    with tempfile.TemporaryDirectory(prefix="state-", dir=work, ignore_cleanup_errors=True) as var:
        command = [sys.executable, "-m", "service", "--model-store", str(store)]
        command += ["--port", str(port), "--data-dir", var]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Poll the readiness of the service.

    Raises:
        DemoError: it ended, or was not ready in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = "\n".join(log.read_text().splitlines()[-10:])
            raise DemoError(f"the service ended with status {process.returncode}:\n{tail}")
        try:
            if httpx.get(f"{address}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise DemoError(f"the service was not ready after {READY_SECONDS:.0f} s: see {log}")


def free_port() -> int:
    """Ask the system for a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def call(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> dict[str, object]:
    """Send JSON, return JSON.

    Raises:
        DemoError: the answer is not a success.
    """
    answer = await client.request(method, path, json=body)
    if not answer.is_success:
        raise DemoError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
    result: dict[str, object] = answer.json()
    return result


async def put_videos(client: httpx.AsyncClient, log: Log) -> int:
    """Register every video that occurs in a log; return how many."""
    items, first = np.unique(log.items, return_index=True)
    categories = log.categories[first]
    for start in range(0, len(items), VIDEOS_PER_CALL):
        chunk = slice(start, start + VIDEOS_PER_CALL)
        rows = log.features[items[chunk]].tolist()
        videos = [
            {"video_id": log.video_id(item), "category": category, "features": row}
            for item, category, row in zip(
                items[chunk].tolist(), categories[chunk].tolist(), rows, strict=True
            )
        ]
        await call(client, "PUT", "/videos", {"videos": videos})
    return len(items)


async def post_clicks(client: httpx.AsyncClient, log: Log) -> dict[str, int]:
    """Replay every click of a log in its order of time; return events by verdict."""
    clicks = np.flatnonzero(log.labels == 1)
    clicks = clicks[np.argsort(log.times[clicks], kind="stable")]
    verdicts: dict[str, int] = {}
    for start in range(0, len(clicks), EVENTS_PER_CALL):
        chunk = clicks[start : start + EVENTS_PER_CALL]
        events = [
            {"user_id": str(user), "video_id": log.video_id(item), "timestamp": moment}
            for user, item, moment in zip(
                log.users[chunk].tolist(),
                log.items[chunk].tolist(),
                log.times[chunk].tolist(),
                strict=True,
            )
        ]
        answer = await call(client, "POST", "/events", {"events": events})
        for result in answer["results"]:  # type: ignore[attr-defined]
            verdicts[result["status"]] = verdicts.get(result["status"], 0) + 1
    return verdicts


async def score(client: httpx.AsyncClient, log: Log, max_users: int | None) -> Served:
    """Ask for the score of every impression of the first ``max_users`` users."""
    order = np.argsort(log.users, kind="stable")
    by_user = np.split(order, np.flatnonzero(np.diff(log.users[order])) + 1)[:max_users]
    calls = [
        rows[start : start + CANDIDATES_PER_CALL]
        for rows in by_user
        for start in range(0, len(rows), CANDIDATES_PER_CALL)
    ]
    scores = np.full(len(log.users), np.nan)
    seconds: list[float] = []
    queue = iter(calls)

    async def worker() -> None:
        # The workers share one iterator: each takes the next call when it is free.
        for rows in queue:
            candidates = [{"video_id": log.video_id(item)} for item in log.items[rows].tolist()]
            body = {"user_id": str(log.users[rows[0]]), "candidates": candidates}
            start = time.perf_counter()
            answer = await call(client, "POST", "/score", body)
            seconds.append(time.perf_counter() - start)
            for result in answer["results"]:  # type: ignore[attr-defined]
                if result["score"] is None:
                    raise DemoError(f"no score for {result['video_id']}: {result.get('reason')}")
                scores[rows[result["index"]]] = result["score"]

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return Served(scores, np.array(seconds), time.perf_counter() - start)


async def replay(address: str, train: Log, test: Log, max_users: int | None) -> Served:
    """Load the videos, replay the clicks and score the impressions of the test file."""
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=address, timeout=60.0, limits=limits) as client:
        count = await put_videos(client, train) + await put_videos(client, test)
        say(f"registered {count} videos")
        verdicts = await post_clicks(client, train)
        told = ", ".join(f"{number} {status}" for status, number in sorted(verdicts.items()))
        say(f"posted {sum(verdicts.values())} clicks: {told}")
        served = await score(client, test, max_users)
    say(f"scored {np.isfinite(served.scores).sum()} impressions")
    return served


def report(run: Path, data: Path, test: Log, served: Served) -> bool:
    """Print offline and served quality side by side; return whether they agree."""
    logits = np.load(run / "evaluation_logits.npy")
    asked = np.isfinite(served.scores)
    users, labels = test.users[asked], test.labels[asked]
    offline = mean_auc(users, labels, logits[asked])
    online = mean_auc(users, labels, served.scores[asked])
    equal = abs(offline - online) <= AUC_TOLERANCE
    p50, p99 = np.percentile(served.call_seconds * 1e3, [50, 99])
    rate = len(served.call_seconds) / served.wall_seconds
    lines = [
        ("impressions", f"{asked.sum()} of {len(np.unique(users))} users"),
        ("AUC per user, offline", f"{offline:.4f}"),
        ("AUC per user, served", f"{online:.4f}  {'(equal)' if equal else '(DIFFERENT)'}"),
        *oracle_lines(data, offline),
        ("requests", f"{len(served.call_seconds)}, {rate:.0f} per second"),
        ("latency", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms at {CONNECTIONS} connections"),
    ]
    print()
    for name, value in lines:
        print(f"  {name:<24}{value}")
    print(flush=True)
    return bool(equal)


def oracle_lines(data: Path, auc: float) -> list[tuple[str, str]]:
    """Say how near the best possible AUC the model is, where the data comes with one."""
    path = data / "world.json"
    if not path.is_file():
        return []
    world = json.loads(path.read_text())
    oracle = float(world.get("oracle_user_auc") or world["oracle_auc"])
    closed = (auc - 0.5) / (oracle - 0.5)
    return [
        ("AUC per user, oracle", f"{oracle:.4f}"),
        ("way from 0.5 to oracle", f"{closed:.0%} closed"),
    ]


def train_and_promote(arguments: argparse.Namespace, data: Path, run: Path) -> Path:
    """Fit, evaluate, export and promote; return the model store."""
    store: Path = arguments.work / "store"
    say(f"training on {data}")
    training("fit", "--data", data, "--preset", "modern", "--out", run)
    say("evaluating on the test file")
    training("evaluate", "--run", run, "--data", data, quiet=True)
    say("exporting to ONNX and publishing")
    version = training("export", "--run", run, "--store", store, quiet=True)
    training("promote", version, "--store", store, quiet=True)
    say(f"promoted {version}")
    return store


def prepare_data(arguments: argparse.Namespace) -> Path:
    """Return the folder of the log; make a synthetic one when none was given."""
    if arguments.data != "none":
        return Path(arguments.data)
    data: Path = arguments.work / "data"
    say("generating a click log")
    training("synthesize", *SIZE, "--seed", "7", "--out", data, quiet=True)
    return data


def keep_serving(address: str, test: Log) -> None:
    """Say how to try the service, then wait for Ctrl-C."""
    body = json.dumps(
        {
            "user_id": str(test.users[0]),
            "candidates": [{"video_id": test.video_id(i)} for i in test.items[:5].tolist()],
        }
    )
    print(f"serving at {address} (Ctrl-C ends it); try:\n")
    print(
        f"  curl -s {address}/score -H 'content-type: application/json' -d '{body}'\n", flush=True
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("stopping")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", default="none", help="folder of a log, or none for a synthetic one"
    )
    parser.add_argument("--once", action="store_true", help="end after the report")
    parser.add_argument("--work", type=Path, default=Path("var/demo"), help="where everything goes")
    parser.add_argument("--port", type=int, help="port of the service (default: a free one)")
    parser.add_argument("--score-users", type=int, help="score these many users (default: all)")
    return parser.parse_args()


def main() -> int:
    """Run the demo."""
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    # A run directory of its own each time: the trainer resumes an old one.
    run = Path(tempfile.mkdtemp(prefix="run-", dir=arguments.work))
    try:
        data = prepare_data(arguments)
        store = train_and_promote(arguments, data, run)
        train, test = read_log(data, "train"), read_log(data, "test")
        say("starting the service")
        with serving(store, arguments.work, arguments.port or free_port()) as address:
            served = asyncio.run(replay(address, train, test, arguments.score_users))
            equal = report(run, data, test, served)
            if not arguments.once:
                keep_serving(address, test)
    except (DemoError, OSError, httpx.HTTPError) as error:
        print(f"demo: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
