"""Make a running service live: users who look, click and come back, and videos that arrive.

Loads the videos and clicks of a log, then asks for rankings at a steady rate whatever the answers
take, and clicks what the scores make likely. A request that fails is sent again, as a good client
would; the first ranking is printed, and what became of the requests, every ten seconds and, in
the last line, in all. With ``--only-version`` it ends as soon as another version than the named
one answers, and never begins where that one does not.
Exit status 0 when none was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from demo import DemoError, Log, call, post_clicks, put_videos, read_log

CANDIDATES = 100
REPORT_SECONDS = 10.0
NEW_VIDEO_SECONDS = 5.0
PAUSE_SECONDS = 0.25
NEWEST = 200


@dataclass(slots=True)
class Counts:
    """What became of the requests.

    Attributes:
        answered: requests with a good answer, at once or after some attempts.
        lost: requests without one when their time was up.
        refused: attempts that found nobody listening; nothing was sent.
        cut: attempts whose connection ended before the answer.
        slow: attempts without an answer in ten seconds.
        failed: attempts answered with an error.
        clicks: events that were acknowledged.
    """

    answered: int = 0
    lost: int = 0
    refused: int = 0
    cut: int = 0
    slow: int = 0
    failed: int = 0
    clicks: int = 0


class Load:
    """Users of one service.

    Args:
        client: speaks to the service.
        log: where users and videos come from.
        patience: seconds after which a request is given up.
        seed: of what users do.
        only_version: sets ``stop`` when another version answers.
        stop: set when there is nothing more to do.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        log: Log,
        *,
        patience: float,
        seed: int,
        only_version: str | None,
        stop: asyncio.Event,
    ) -> None:
        self.counts = Counts()
        self._only_version = only_version
        self._stop = stop
        self._client = client
        self._log = log
        self._patience = patience
        self._random = np.random.default_rng(seed)
        self._users = np.unique(log.users)
        self._items = np.unique(log.items)
        self._newest: list[str] = []
        self._shown = False

    async def visit(self) -> None:
        """Rank candidates for some user, then click some of them."""
        user = str(self._random.choice(self._users))
        items = self._random.choice(self._items, CANDIDATES, replace=False).tolist()
        videos = [*self._newest[-5:], *map(self._log.video_id, items)][:CANDIDATES]
        body = {"user_id": user, "candidates": [{"video_id": video} for video in videos]}
        answer = await self._send("POST", "/score", body)
        if answer is None:
            return
        if self._only_version not in {None, answer["model"]["version"]}:
            self._stop.set()
            return
        if not self._shown:
            self._shown = True
            show(user, answer)
        scored = [row for row in answer["results"] if row["score"] is not None]
        # A user sees the first ten only.
        liked = [row for row in scored[:10] if self._random.random() < row["score"]]
        now = time.time_ns() // 1_000_000
        events = [
            {
                "user_id": user,
                "video_id": row["video_id"],
                "timestamp": now + place,
                "event_id": uuid4().hex,
            }
            for place, row in enumerate(liked)
        ]
        if events and await self._send("POST", "/events", {"events": events}) is not None:
            self.counts.clicks += len(events)

    async def upload(self) -> None:
        """Register a video that looks a little like an old one."""
        item = int(self._random.choice(self._items))
        row = self._log.features[item] + self._random.normal(0, 0.01, self._log.features.shape[1])
        category = int(self._log.categories[self._log.items == item][0])
        name = f"new-{uuid4().hex[:12]}"
        video = {"video_id": name, "category": category, "features": row.tolist()}
        if await self._send("PUT", "/videos", {"videos": [video]}) is not None:
            self._newest = [*self._newest, name][-NEWEST:]

    async def _send(self, method: str, path: str, body: object) -> dict[str, Any] | None:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            try:
                answer = await self._client.request(method, path, json=body)
                if answer.is_success:
                    self.counts.answered += 1
                    result: dict[str, Any] = answer.json()
                    return result
                self.counts.failed += 1
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self.counts.refused += 1
            except httpx.TimeoutException:
                self.counts.slow += 1
            except httpx.TransportError:
                self.counts.cut += 1
            await asyncio.sleep(PAUSE_SECONDS)
        self.counts.lost += 1
        return None


def show(user: str, answer: dict[str, Any]) -> None:
    """Print the best of a ranking."""
    results, clicks = answer["results"], answer["history"]["length"]
    print(f"user {user}, {clicks} clicks: the best of {len(results)} videos", flush=True)
    for row in results[:5]:
        print(f"  {row['rank']}. {row['video_id']:<20} {row['score']:.4f}", flush=True)


async def until_ready(client: httpx.AsyncClient, stop: asyncio.Event) -> None:
    """Wait for a service with a model, or for the end."""
    print(f"waiting for {client.base_url}", flush=True)
    while not stop.is_set():
        with suppress(httpx.TransportError):
            if (await client.get("/health/ready")).is_success:
                return
        await asyncio.sleep(PAUSE_SECONDS)


async def keep_going(load: Load, *, rate: float, seconds: float, stop: asyncio.Event) -> None:
    """Start visits at a rate until the time is up or someone stops it; end those under way."""
    start = time.monotonic()
    visits = uploads = reports = 0
    async with asyncio.TaskGroup() as group:
        while not stop.is_set() and (passed := time.monotonic() - start) < seconds:
            for _ in range(int(passed * rate) - visits):
                group.create_task(load.visit())
                visits += 1
            if passed >= uploads * NEW_VIDEO_SECONDS:
                group.create_task(load.upload())
                uploads += 1
            if passed >= (reports + 1) * REPORT_SECONDS:
                print(json.dumps(asdict(load.counts)), flush=True)
                reports += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.005)


async def is_promoted(client: httpx.AsyncClient, version: str) -> bool:
    """Ask whether a version is the promoted one: a worker may take it up a moment later."""
    models = await call(client, "GET", "/models", None)
    return models["current"] == version


async def run(options: argparse.Namespace) -> Counts:
    """Fill the service, then load it."""
    only_version: str | None = None
    if options.only_version is not None:
        if not options.only_version.is_file():
            print(f"no {options.only_version}: another model than the demo's, no visits")
            return Counts()
        only_version = options.only_version.read_text().strip()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    train, test = read_log(options.data, "train"), read_log(options.data, "test")
    limits = httpx.Limits(max_connections=64)
    # Waiting for a connection is this client's own affair.
    timeout = httpx.Timeout(10.0, pool=None)
    async with httpx.AsyncClient(base_url=options.url, timeout=timeout, limits=limits) as client:
        await until_ready(client, stop)
        if stop.is_set():
            return Counts()
        if only_version is not None and not await is_promoted(client, only_version):
            print(f"another version than {only_version} is promoted: no visits")
            return Counts()
        videos = await put_videos(client, train) + await put_videos(client, test)
        verdicts = await post_clicks(client, train)
        print(f"loaded {videos} videos and {sum(verdicts.values())} clicks: {verdicts}", flush=True)
        load = Load(
            client,
            test,
            patience=options.patience,
            seed=options.seed,
            only_version=only_version,
            stop=stop,
        )
        await keep_going(load, rate=options.rate, seconds=options.seconds, stop=stop)
    return load.counts


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", required=True, help="the service, e.g. http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, required=True, help="a log in MicroVideo-1.7M layout")
    parser.add_argument("--rate", type=float, default=20.0, help="visits per second")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after as long")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds after which a request is lost"
    )
    parser.add_argument(
        "--only-version", type=Path, metavar="FILE", help="visit while the version in it answers"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what users do")
    try:
        counts = asyncio.run(run(parser.parse_args()))
    except (DemoError, OSError, httpx.TransportError) as error:
        print(f"load: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(counts)), flush=True)
    return 1 if counts.lost else 0


if __name__ == "__main__":
    sys.exit(main())
