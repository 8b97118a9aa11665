"""How many servers a service needs, from measured bytes and operations and a described load.

``python -m benchmarks.capacity`` works it out for 60 million daily users and 10 million new videos
a day; ``--help`` lists what can be said of another service. Bytes and rates come from
``results/state.json`` (``make bench-state``), the rate of scores from ``results/summary.json``
(``make bench``) where that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOC = Path(__file__).parents[1] / "docs" / "capacity.md"
DAY_SECONDS = 86_400
GIB = 2**30


def _said(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Load:
    """What is asked of the service; ``--help`` prints the same words."""

    daily_users: float = _said(60e6, "users a day")
    idle_days: float = _said(30, "CTR_USER_IDLE_DAYS")
    kept_per_daily: float = _said(2.0, "users seen within that time, per daily user")
    clicks: float = _said(50, "clicks of a user and day")
    clicks_per_call: float = _said(1, "clicks of one user in one POST /events")
    scores: float = _said(60, "POST /score of a user and day")
    candidates: float = _said(200, "candidates a score")
    row_hits: float = _said(0.98, "share of candidates whose rows are in memory of the worker")
    new_videos: float = _said(10e6, "videos a day")
    video_days: float = _said(3, "CTR_VIDEO_IDLE_DAYS")
    clicked_share: float = _said(0.3, "of the videos that are ever clicked")
    peak: float = _said(3.0, "busiest second against the mean")
    node_gib: float = _said(64, "memory of one Redis machine")
    node_share: float = _said(
        0.5, "of it for data: the rest is fragmentation and rewriting the AOF"
    )
    core_share: float = _said(0.5, "of a Redis core in use in the busiest second")
    replicas: float = _said(1, "of each master")
    scores_per_worker: float = _said(0.0, "scores a second of one worker process; 0: as measured")


@dataclass(frozen=True)
class Costs:
    """Measured: bytes in memory, and operations per second of Redis' CPU."""

    user_bytes: float
    video_bytes: float
    append: float
    profile_read: float
    profile_renewed: float
    video_read: float
    profile_wire_bytes: float
    video_wire_bytes: float
    aof_bytes: float

    @classmethod
    def measured(cls, state: dict[str, float], *, batched: bool) -> Costs:
        """Take them from the results of the benchmark of the store."""
        size = 10 if batched else 1
        return cls(
            user_bytes=state["list_bytes_per_user_with_event_ids"]
            + state["profile_bytes_per_user"],
            video_bytes=state["video_bytes_per_video"],
            append=state[f"list_{size}_per_cpu_s"],
            profile_read=state["profile_read_per_cpu_s"],
            profile_renewed=state["profile_renewed_per_cpu_s"],
            video_read=state["video_read_per_cpu_s"],
            profile_wire_bytes=state["profile_bytes"],
            video_wire_bytes=1_032.0,
            aof_bytes=state[f"list_{size}_aof_bytes"] + state["profile_bytes"],
        )


@dataclass(frozen=True)
class Answer:
    """What it takes."""

    users: float
    videos: float
    user_gib: float
    video_gib: float
    clicks_per_s: float
    scores_per_s: float
    redis_cores: float
    redis_mbit: float
    aof_gib_per_hour: float
    masters_for_memory: int
    masters_for_cores: int
    masters: int
    machines: int
    workers: int


def work_out(load: Load, costs: Costs, scores_per_worker: float) -> Answer:
    """Work out the servers; rates are of the busiest second."""
    users = load.daily_users * load.kept_per_daily
    # A clicked video lives for two idle times of a user, so that no history loses it.
    clicked_days = max(load.video_days, 2 * load.idle_days)
    share = load.clicked_share
    videos = load.new_videos * ((1 - share) * load.video_days + share * clicked_days)
    user_gib, video_gib = users * costs.user_bytes / GIB, videos * costs.video_bytes / GIB
    a_second = load.daily_users / DAY_SECONDS * load.peak
    clicks, scores = a_second * load.clicks, a_second * load.scores
    misses = scores * load.candidates * (1 - load.row_hits)
    # At most one profile is computed per score, and at most one per call with clicks.
    renewals = min(scores, clicks / load.clicks_per_call)
    cores = (
        clicks / costs.append
        + scores / costs.profile_read
        + renewals / costs.profile_renewed
        + misses / costs.video_read
    )
    wire = (scores + renewals) * costs.profile_wire_bytes + misses * costs.video_wire_bytes
    for_memory = math.ceil((user_gib + video_gib) / (load.node_gib * load.node_share))
    for_cores = math.ceil(cores / load.core_share)
    masters = max(3, for_memory, for_cores)
    return Answer(
        users=users,
        videos=videos,
        user_gib=user_gib,
        video_gib=video_gib,
        clicks_per_s=clicks,
        scores_per_s=scores,
        redis_cores=cores,
        redis_mbit=8e-6 * wire,
        aof_gib_per_hour=clicks / load.peak * costs.aof_bytes * 3600 / GIB,
        masters_for_memory=for_memory,
        masters_for_cores=for_cores,
        masters=masters,
        machines=math.ceil(masters * (1 + load.replicas)),
        workers=math.ceil(scores / scores_per_worker) if scores_per_worker else 0,
    )


def holds(masters: int, load: Load, costs: Costs) -> dict[str, float]:
    """Say how much a cluster of so many masters holds, each thing by itself."""
    memory = masters * load.node_gib * load.node_share * GIB
    cores = masters * load.core_share
    return {
        "users": memory / costs.user_bytes,
        "videos": memory / costs.video_bytes,
        "clicks a second": cores * costs.append,
        "warm scores a second": cores * costs.profile_read,
        "scores a second, each after a click": cores
        / (1 / costs.append + 1 / costs.profile_read + 1 / costs.profile_renewed),
    }


def show(load: Load, costs: Costs, answer: Answer) -> str:
    """Lay out the answer as Markdown."""
    said = {
        "": "",
        "---": "---",
        "users kept": f"{answer.users / 1e6:,.0f} M x {costs.user_bytes:,.0f} B"
        f" = {answer.user_gib:,.0f} GiB",
        "videos kept": f"{answer.videos / 1e6:,.0f} M x {costs.video_bytes:,.0f} B"
        f" = {answer.video_gib:,.0f} GiB",
        "clicks a second, busiest": f"{answer.clicks_per_s:,.0f}",
        "scores a second, busiest": f"{answer.scores_per_s:,.0f}",
        "Redis cores busy then": f"{answer.redis_cores:,.1f}",
        "Redis traffic then": f"{answer.redis_mbit / 1e3:,.1f} Gbit/s",
        "append-only files, mean": f"{answer.aof_gib_per_hour:,.0f} GiB an hour",
        "masters for memory": f"{answer.masters_for_memory}",
        "masters for cores": f"{answer.masters_for_cores}",
        "**masters**": f"**{answer.masters}**",
        "machines with replicas": f"{answer.machines} of {load.node_gib:.0f} GiB",
    }
    lines = [f"| {name} | {text} |" for name, text in said.items()]
    if answer.workers:
        lines.append(f"| worker processes, each a core | {answer.workers:,} |")
    lines += ["", "| a cluster of N masters holds | 3 | 8 | 16 | 64 |", "|---|---|---|---|---|"]
    columns = [holds(n, load, costs) for n in (3, 8, 16, 64)]
    for name in columns[0]:
        cells = " | ".join(_short(column[name]) for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    million = 1e6
    if value < million:
        return f"{value / 1e3:,.0f} k"
    return f"{value / million:,.0f} M" if value >= 100 * million else f"{value / million:,.3g} M"


def main() -> None:
    """Read flags and results, print the answer."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for one in fields(Load):
        flag = "--" + one.name.replace("_", "-")
        parser.add_argument(flag, type=float, default=one.default, help=one.metadata["help"])
    parser.add_argument("--write", action="store_true", help="into docs/capacity.md, too")
    options = vars(parser.parse_args())
    write = options.pop("write")
    load = Load(**options)
    state = json.loads((RESULTS / "state.json").read_text())
    costs = Costs.measured(state, batched=load.clicks_per_call >= 10)  # noqa: PLR2004
    summary = RESULTS / "summary.json"
    measured = json.loads(summary.read_text()) if summary.exists() else {}
    rate = load.scores_per_worker or measured.get("score_200_rps", 0.0)
    text = show(load, costs, work_out(load, costs, rate))
    print(text)
    if write:
        inside = f"<!-- worked -->\n{text}\n<!-- /worked -->"
        DOC.write_text(
            re.sub("<!-- worked -->.*<!-- /worked -->", inside, DOC.read_text(), flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
