"""Memory and speed of the store: three encodings of a history, and Redis' own plain commands.

Writes ``results/state.json`` (one flat object) and ``results/state_runs.json`` (every run).
Rates are of one Redis process, with commands pipelined a hundred at a time by a client that
packs them beforehand. CPU time is that of the redis-server process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import hiredis
import numpy as np

from benchmarks.encoded import (
    CLICKS,
    ENCODED,
    LIST,
    PIPELINE,
    SCRIPTS,
    START_MS,
    Command,
    Encoding,
    Load,
    appends,
    fill,
)
from benchmarks.redis_process import Server, server
from benchmarks.round_trips import counting_proxy
from model_store import Click
from service.embedded_redis import find_server
from service.packed_profile import Origin, pack_profile
from service.state import NewClick, State, Video
from service.state.codec import META_BYTES, pack_video
from service.state.keys import user_keys, video_key

RESULTS = Path(__file__).parent / "results"
PROFILE_BYTES, VIDEO_BYTES = 3_778, 1_032

Runs = dict[str, list[float]]


def memory(redis: Server, encoding: Encoding, *, events: bool, users: int) -> float:
    """Return bytes per user with a full history, from the growth of used_memory."""
    redis.ask("FLUSHALL")
    before = redis.used_memory()
    fill(redis, encoding, Load(users, events=events))
    return (redis.used_memory() - before) / users


def profile_memory(redis: Server, users: int) -> tuple[int, float]:
    """Return bytes of a stored profile of full width, packed and as used_memory grows."""
    array = np.random.default_rng(1).normal(size=(8, 128)).astype(np.float32)
    version = "20260101T000000000000Z-thacil-0123abcd"
    origin = Origin(version, 1, 1, np.arange(CLICKS, dtype=np.uint32))
    packed = pack_profile(array, origin)
    redis.ask("FLUSHALL")
    before = redis.used_memory()
    sets = [
        hiredis.pack_command(("SET", user_keys(u).profile, packed))
        for u in Load(users, events=False).users()
    ]
    redis.exchange(sets, len(sets))
    return len(packed), (redis.used_memory() - before) / users


def video_memory(redis: Server, videos: int) -> float:
    """Return bytes of a stored video of 512 features, as used_memory grows."""
    features = np.random.default_rng(1).normal(size=512).astype(np.float16)
    packed = pack_video(Video(3, features))
    redis.ask("FLUSHALL")
    before = redis.used_memory()
    sets = [
        hiredis.pack_command(("SET", video_key(f"{i:07d}"), packed, "PX", 10**9))
        for i in range(videos)
    ]
    redis.exchange(sets, len(sets))
    return (redis.used_memory() - before) / videos


def paced(redis: Server, calls: Sequence[Command]) -> tuple[float, float]:
    """Return commands per second of wall time and of Redis' CPU time, pipelined."""
    packed = [hiredis.pack_command(call) for call in calls]
    cpu, start = redis.cpu_seconds(), time.perf_counter()
    for at in range(0, len(packed), PIPELINE):
        part = packed[at : at + PIPELINE]
        redis.exchange(part, len(part))
    wall = time.perf_counter() - start
    return len(packed) / wall, len(packed) / max(redis.cpu_seconds() - cpu, 1e-3)


def score_costs(redis: Server, total: int) -> dict[str, tuple[float, float]]:
    """Rates of what scores ask: profile and version; history, and a profile anew; videos' rows."""
    load = Load(500, events=True)
    redis.ask("FLUSHALL")
    fill(redis, LIST, load)
    names = [user_keys(user) for user in load.users()]
    versions = redis.exchange(
        [hiredis.pack_command(("GETRANGE", keys.meta, 2, 9)) for keys in names], len(names)
    )
    stored = b"\0" * PROFILE_BYTES
    for keys in names:
        redis.ask("SET", keys.profile, stored)
    for number in range(1_000):
        redis.ask("SET", video_key(f"{number:07d}"), b"\0" * VIDEO_BYTES)
    read: list[Command] = []
    computed: list[Command] = []
    history, store = (_loaded(redis, name) for name in ("history", "store_profile"))
    for number in range(total):
        keys, version = names[number % len(names)], versions[number % len(names)]
        assert isinstance(version, bytes)  # noqa: S101
        read += [("GETRANGE", keys.meta, 0, META_BYTES - 1), ("GET", keys.profile)]
        computed += [
            ("EVALSHA", history, 3, keys.history, keys.meta, keys.lease, 0, ""),
            ("EVALSHA", store, 3, keys.meta, keys.profile, keys.lease, version, stored, "", 0),
        ]
    rows = [
        ("MGET", *(video_key(f"{(100 * call + row) % 1_000:07d}") for row in range(100)))
        for call in range(total // 100)
    ]
    scale = {"profile_read": 0.5, "profile_renewed": 0.5, "video_read": 100.0}
    rates = map(paced, [redis] * 3, (read, computed, rows))
    return {
        name: (factor * wall, factor * cpu)
        for (name, factor), (wall, cpu) in zip(scale.items(), rates, strict=True)
    }


def _loaded(redis: Server, script: str) -> str:
    name = redis.ask("SCRIPT", "LOAD", (SCRIPTS / f"{script}.lua").read_bytes())
    assert isinstance(name, bytes)  # noqa: S101
    return name.decode()


def plain(redis: Server, command: Sequence[str], total: int) -> float:
    """Return commands per second by redis-benchmark, pipelined as ours are."""
    told = subprocess.check_output(
        [
            shutil.which("redis-benchmark") or "redis-benchmark",
            "-s",
            str(redis.path),
            "-n",
            str(total),
            "-r",
            "1000",
            "-P",
            str(PIPELINE),
            "-c",
            "1",
            "--csv",
            *command,
        ],
        text=True,
        stderr=subprocess.DEVNULL,
    )
    return float(told.strip().splitlines()[-1].split('","')[1].strip('"'))


def plain_commands(redis: Server, total: int) -> dict[str, float]:
    """Return appends per second by plain commands: several commands make one append."""
    number = "__rand_int__"
    for user in range(1000):
        name = f"{user:012d}"
        members = [
            part for i in range(CLICKS) for part in (START_MS + i, f"{START_MS + i}:v{i:07d}")
        ]
        redis.ask("ZADD", f"pz:{name}", *members)
        redis.ask("RPUSH", f"pl:{name}", *(f"123456v{i:07d}" for i in range(CLICKS)))
    rates = {
        "zadd": plain(redis, ["ZADD", f"pz:{number}", number, f"17000000{number}"], total),
        "zremrangebyrank": plain(redis, ["ZREMRANGEBYRANK", f"pz:{number}", "0", "-161"], total),
        "rpush": plain(redis, ["RPUSH", f"pl:{number}", f"12{number}"], total),
        "ltrim": plain(redis, ["LTRIM", f"pl:{number}", "-160", "-1"], total),
        "set": plain(redis, ["SET", f"pm:{number}", "x" * 28], total),
    }
    rates["append_sorted_set"] = 1 / (
        1 / rates["zadd"] + 1 / rates["zremrangebyrank"] + 1 / rates["set"]
    )
    rates["append_list"] = 1 / (1 / rates["rpush"] + 1 / rates["ltrim"] + 1 / rates["set"])
    # What makes a repeated delivery harmless, by plain commands: the ids in a sorted set.
    ids = 1 / rates["zadd"] + 1 / rates["zremrangebyrank"]
    rates["append_list_and_ids"] = 1 / (1 / rates["append_list"] + ids)
    return rates


async def through_state(url: str, per_call: int, total: int) -> float:
    """Return events per second through :meth:`State.append`, one call after another."""
    state, load = State(url), Load(500, events=True)
    calls = [
        [
            NewClick(load.user(), Click(at, video), event)
            for at, video, event in load.clicks(per_call)
        ]
        for _ in range(total // per_call)
    ]
    await state.append(calls[0])
    start = time.perf_counter()
    for call in calls:
        await state.append(call)
    rate = len(calls) * per_call / (time.perf_counter() - start)
    await state.close()
    return rate


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--appends", type=int, default=20_000)
    options = parser.parse_args()
    binary = Path(shutil.which("redis-server") or find_server())
    runs: Runs = defaultdict(list)
    with server(binary, appendonly=True) as (redis, directory):
        measure(redis, directory, runs, options)
    summary = {name: statistics.median(values) for name, values in runs.items()}
    for kind in ("sorted_set", "list", "list_and_ids"):
        summary[f"list_1_x_plain_{kind}"] = (
            summary["list_1_per_s"] / summary[f"plain_append_{kind}_per_s"]
        )
        summary[f"list_10_x_plain_{kind}"] = (
            summary["list_10_per_s"] / summary[f"plain_append_{kind}_per_s"]
        )
    RESULTS.mkdir(exist_ok=True)
    rounded = {name: float(f"{value:.5g}") for name, value in sorted(summary.items())}
    (RESULTS / "state.json").write_text(json.dumps(rounded, indent=2) + "\n")
    version = subprocess.check_output([binary, "--version"], text=True).split()[2]
    (RESULTS / "state_runs.json").write_text(json.dumps({"redis": version, "runs": runs}) + "\n")
    for name, value in rounded.items():
        print(f"{name:36s} {value:14,.1f}" if value >= 10 else f"{name:36s} {value:14.3f}")  # noqa: PLR2004


async def round_trips(path: Path) -> dict[str, int]:
    """Return how many round trips a look at a warm user takes, and calls of 1 and 10,000 events."""
    url, counts = f"unix://{path.parent / 'counting'}", {}
    with counting_proxy(path, path.parent / "counting") as proxy:
        state, load = State(url, timeout_seconds=20), Load(500, events=True)
        await state.videos(["v"])
        for number in (1, 10_000):
            users = load.users()[: min(number, 500)]
            clicks = [
                NewClick(users[row % len(users)], Click(at, video), event)
                for row, (at, video, event) in enumerate(load.clicks(number))
            ]
            await state.append(clicks)
            # Answers are held back until all that must be asked has been: one more is one too many.
            proxy.hold(len(users) + 1, b"EVALSHA")
            await state.append(clicks)
            counts[f"events_{number}"] = proxy.round_trips(b"")
        proxy.hold(3, b"")
        await state.view(load.user(), [f"{number:07d}" for number in range(200)])
        counts["score_warm"] = proxy.round_trips(b"")
        await state.close()
    return counts


def measure(redis: Server, directory: Path, runs: Runs, options: argparse.Namespace) -> None:
    """Fill ``runs``: memory once, speeds in rounds, one thing after the other in each."""
    measure_memory(redis, runs, users=options.users)
    for name, count in asyncio.run(round_trips(redis.path)).items():
        runs[f"{name}_round_trips"].append(count)
    redis.ask("FLUSHALL")
    loads = {encoding.name: Load(options.users, events=True) for encoding in ENCODED}
    for _ in range(options.rounds):
        for name, (wall, cpu) in score_costs(redis, options.appends).items():
            runs[f"{name}_per_s"].append(wall)
            runs[f"{name}_per_cpu_s"].append(cpu)
    redis.ask("FLUSHALL")
    for encoding in ENCODED:
        fill(redis, encoding, loads[encoding.name])
    for _ in range(options.rounds):
        measure_appends(redis, directory, loads, runs, total=options.appends)
        for name, rate in plain_commands(redis, 5 * options.appends).items():
            runs[f"plain_{name}_per_s"].append(rate)
        for per_call in (1, 10, 100):
            url = f"unix://{redis.path}"
            rate = asyncio.run(through_state(url, per_call, 3_000 if per_call == 1 else 20_000))
            runs[f"state_append_{per_call}_per_s"].append(rate)


def measure_memory(redis: Server, runs: Runs, *, users: int) -> None:
    """Bytes per user and per video."""
    for encoding in ENCODED:
        for events in (False, True):
            name = f"{encoding.name}_bytes_per_user" + ("_with_event_ids" if events else "")
            runs[name].append(memory(redis, encoding, events=events, users=users))
    packed, kept = profile_memory(redis, users)
    runs["profile_bytes"].append(packed)
    runs["profile_bytes_per_user"].append(kept)
    runs["video_bytes_per_video"].append(video_memory(redis, 20_000))
    redis.ask("FLUSHALL")


def measure_appends(
    redis: Server, directory: Path, loads: dict[str, Load], runs: Runs, *, total: int
) -> None:
    """Appends per second and bytes of the append-only file, of each encoding."""
    for encoding in ENCODED:
        for per_call in (1, 10, 100):
            before = redis.aof_bytes(directory)
            wall, cpu = appends(
                redis, encoding, loads[encoding.name], per_call=per_call, total=total
            )
            written = redis.aof_bytes(directory) - before
            runs[f"{encoding.name}_{per_call}_per_s"].append(wall)
            runs[f"{encoding.name}_{per_call}_per_cpu_s"].append(cpu)
            if written > 0:
                runs[f"{encoding.name}_{per_call}_aof_bytes"].append(written / total)


if __name__ == "__main__":
    main()
