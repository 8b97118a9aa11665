"""What a log holds, as a page, as JSON and as lines for a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from model_store import IntArray
from training.figures import distributions_svg
from training.inspection import Distributions, LogSummary, PartSummary
from training.page import bullets, heading, page, paragraph, picture, table

_BAR_WIDTH = 40


def write_inspection(summary: LogSummary, distributions: Distributions, out: Path) -> None:
    """Write ``inspection.html`` and ``inspection.json`` into a directory."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "inspection.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    (out / "inspection.html").write_text(inspection_page(summary, distributions))


def inspection_page(summary: LogSummary, distributions: Distributions) -> str:
    """A log's contents as one HTML file, pictures included."""
    return page("What the click log holds", inspection_parts(summary, distributions)[1:])


def inspection_parts(summary: LogSummary, distributions: Distributions) -> list[str]:
    """Sizes, pictures and faults of a log, as pieces of a page."""
    rows = inspection_rows(summary)
    faults = [paragraph("What looks wrong: nothing.")]
    if summary.faults:
        faults = [paragraph("What looks wrong:"), bullets(summary.faults)]
    caption = (
        "Distributions of the training file, and how many clicks lie before each test impression."
    )
    return [
        heading("The log"),
        table(rows[0], rows[1:]),
        paragraph("* quantiles: 0, 25, 50, 75, 95 and 100 %", kind="soft"),
        picture(distributions_svg(distributions), caption),
        *faults,
    ]


def inspection_text(summary: LogSummary, distributions: Distributions) -> str:
    """A log's sizes, the paper's Fig. 3 as bars, and faults, for a terminal."""
    rows = inspection_rows(summary)
    width = max(len(row[0]) for row in rows)
    lines = [row[0].ljust(width) + "".join(cell.rjust(28) for cell in row[1:]) for row in rows]
    faults = [f"  - {fault}" for fault in summary.faults] or ["  nothing"]
    lines.append("* quantiles: 0, 25, 50, 75, 95 and 100 %")
    bars = [
        "clicks per user (Fig. 3a): users",
        *_bars(distributions.clicks_per_user),
        "videos per category (Fig. 3b): categories",
        *_bars(distributions.videos_per_category),
    ]
    return "\n".join([*lines, "", *bars, "", "what looks wrong:", *faults])


def _bars(values: IntArray) -> list[str]:
    """Count values in groups that double in width: 0, 1, 2-3, 4-7, ..."""
    group = np.where(values > 0, np.frexp(values.astype(np.float64))[1], 0)
    counts = np.bincount(group)
    lines = []
    for place, count in enumerate(counts.tolist()):
        low, high = (0, 0) if place == 0 else (2 ** (place - 1), 2**place - 1)
        name = f"{low}" if low == high else f"{low}-{high}"
        bar = "#" * round(_BAR_WIDTH * count / counts.max())
        lines.append(f"  {name:>13s} {count:>9,d} {bar}".rstrip())
    return lines


def inspection_rows(summary: LogSummary) -> list[tuple[str, ...]]:
    """A log as a table, the header first: one column per file."""
    parts = [part for part in (summary.train, summary.test) if part is not None]
    header = ("", "train", "test")[: 1 + len(parts)]
    rows = [header, *zip(*(_part_cells(part) for part in parts), strict=True)]
    names = (
        "impressions", "users", "videos", "of the feature file", "categories", "click share",
        "sparsity", "first", "last", "impressions per user *", "clicks per user *",
    )  # fmt: skip
    rows = [header, *((name, *cells) for name, cells in zip(names, rows[1:], strict=True))]
    blank = ("",) * (len(parts) - 1)
    rows.append(("feature width", str(summary.feature_dim), *blank))
    rows.append(("users with over 160 clicks", f"{summary.long_histories:.1%}", *blank))
    if summary.test is not None:
        rows.append(("users with both classes", "", f"{summary.rankable_users:,}"))
        rows.append(("clicks before an impression *", "", _quantiles(summary.test_history)))
    return rows


def _part_cells(part: PartSummary) -> list[str]:
    first, last = (_moment(ms) for ms in (part.first_ms, part.last_ms))
    return [
        f"{part.impressions:,}",
        f"{part.users:,}",
        f"{part.videos:,}",
        f"{part.listed_videos:,}",
        f"{part.categories:,}",
        f"{part.click_share:.1%}",
        f"{part.sparsity:.2%}",
        first,
        last,
        _quantiles(part.impressions_per_user),
        _quantiles(part.clicks_per_user),
    ]


def _quantiles(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:,.0f}" for value in values)


def _moment(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        # Some logs only number their events.
        return f"{ms:,}"
