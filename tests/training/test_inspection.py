"""What inspect says of a log: counts by brute force, and each fault it knows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.__main__ import main
from training.figures import distributions_svg
from training.inspection import clicks_of_users, inspect_log
from training.inspection_report import inspection_text
from training.interactions import ClickLog, Impressions, load_click_log
from training.synthetic import synthesize

Row = tuple[int, int, int, int, int]
LATE = 1_600_000_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=50, videos=400, interactions=9000, seed=2, categories=8, feature_dim=12)
    return out


def _rows(rows: list[Row]) -> Impressions:
    users, items, categories, labels, times = (
        np.array(column, np.int64) for column in zip(*rows, strict=True)
    )
    return Impressions(users, items, categories, labels.astype(np.float32), times)


def _log(train: list[Row], test: list[Row] | None = None, *, videos: int = 4) -> ClickLog:
    features = np.arange(1, 2 * videos + 1, dtype=np.float32).reshape(videos, 2)
    return ClickLog(
        _rows(train), features, None if test is None else _rows(test), features.copy(), 3
    )


PLAIN: list[Row] = [
    (1, 0, 0, 1, LATE),
    (1, 1, 0, 0, LATE + 1),
    (2, 2, 1, 1, LATE + 2),
    (2, 3, 2, 0, LATE + 3),
]


def test_counts_are_those_of_the_files(world: Path) -> None:
    """Rows, users, videos, click share and histories, counted one by one from the CSV."""
    log = load_click_log(world)
    lines = (world / "train_data.csv").read_text().splitlines()[1:]
    rows = [tuple(map(int, line.split(","))) for line in lines]
    clicks = Counter(row[0] for row in rows if row[3])

    summary, found = inspect_log(log)

    assert summary.train.impressions == len(rows)
    assert summary.train.users == len({row[0] for row in rows})
    assert summary.train.videos == len({row[1] for row in rows})
    assert summary.train.click_share == pytest.approx(sum(row[3] for row in rows) / len(rows))
    pairs = {row[:2] for row in rows}
    cells = summary.train.users * summary.train.videos
    assert summary.train.sparsity == pytest.approx(1 - len(pairs) / cells)
    assert sorted(found.clicks_per_user.tolist()) == sorted(
        clicks[user] for user in {row[0] for row in rows}
    )
    assert found.videos_per_category.tolist() == [
        len({row[1] for row in rows if row[2] == category}) for category in range(8)
    ]
    assert log.test is not None
    assert found.test_history.tolist() == [clicks[user] for user in log.test.user_ids.tolist()]
    assert summary.faults == ()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_clicks_are_counted_per_user(rows: list[tuple[int, bool]]) -> None:
    """For users asked for, in their order, those without a click and strangers included."""
    impressions = _rows([(user, 0, 0, int(c), LATE) for user, c in rows])

    counted = clicks_of_users(impressions, np.arange(-1, 8))

    assert counted.tolist() == [sum(c for u, c in rows if u == user) for user in range(-1, 8)]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([*PLAIN, PLAIN[0]], "1 rows are exact repetitions"),
        ([*PLAIN, (1, 0, 0, 0, LATE)], "1 impressions are both clicked and not clicked"),
        ([*PLAIN, (2, 0, 2, 0, LATE)], "1 videos appear in several categories"),
        ([(*row[:3], 0, *row[4:]) for row in PLAIN], "0 of 4 impressions are clicked"),
        ([(*row[:3], 1, *row[4:]) for row in PLAIN], "4 of 4 impressions are clicked"),
        ([(*row[:4], 7) for row in PLAIN], "every impression has the same timestamp"),
        ([(*row[:4], row[4] // 1000 + n) for n, row in enumerate(PLAIN)], "milliseconds"),
        (PLAIN[:3], "1 videos of the feature file are in no impression"),
    ],
)
def test_a_fault_is_named(rows: list[Row], fault: str) -> None:
    """Each thing that makes a log suspect is said, with how often."""
    faults = inspect_log(_log(rows))[0].faults

    assert sum(fault in text for text in faults) == 1


def test_a_sound_log_has_no_fault() -> None:
    """Nothing is said where nothing is wrong."""
    test = [(user, item, category, c, time + 9) for user, item, category, c, time in PLAIN]

    assert inspect_log(_log(PLAIN, test))[0].faults == ()


def test_faults_between_the_files_are_named() -> None:
    """Strangers, users without clicks, impressions from before, users with one class."""
    train = [*PLAIN, (3, 0, 0, 0, LATE + 4)]
    test = [(9, 0, 0, 1, LATE + 9), (3, 1, 0, 0, LATE + 9), (1, 2, 1, 1, LATE), (1, 3, 2, 0, LATE)]

    summary, _ = inspect_log(_log(train, test))

    assert summary.rankable_users == 1
    text = "\n".join(summary.faults)
    assert "1 of 4 impressions are of users not in training (25.0%)" in text
    assert "1 of 4 impressions are of users without a training click" in text
    assert "2 of 4 impressions are earlier" in text
    assert "2 of 3 users have clicks only or none" in text


def test_features_that_say_nothing_are_counted() -> None:
    """All-zero rows, of whatever sign, and rows equal to an earlier one; zeros are not twins."""
    log = _log(PLAIN)
    features = np.array([[0, 0], [-0.0, 0], [1, 2], [1, 2]], np.float32)

    faults = inspect_log(ClickLog(log.train, features, None, None, 3))[0].faults

    assert any("2 videos have an all-zero feature" in text for text in faults)
    assert any("1 videos have the same feature as another" in text for text in faults)


def test_the_terminal_shows_the_distribution(world: Path) -> None:
    """Bars count every user once, in groups that double."""
    summary, found = inspect_log(load_click_log(world))

    text = inspection_text(summary, found)

    bars = text.split("Fig. 3a): users\n")[1].split("\nvideos")[0].splitlines()
    assert sum(int(line.split()[1].replace(",", "")) for line in bars) == summary.train.users
    low, high = bars[-1].split()[0].split("-")
    assert int(low) <= found.clicks_per_user.max() <= int(high)


def test_the_picture_is_whole(world: Path) -> None:
    """Well-formed SVG without dates, drawn twice the same; three panels where there is a test."""
    _, found = inspect_log(load_click_log(world))

    svg = distributions_svg(found)

    root = ET.fromstring(svg)  # noqa: S314  our own text
    panels = [g for g in root.iter() if g.get("id", "").startswith("axes_")]
    assert len(panels) == 3
    assert svg == distributions_svg(found)


def test_the_verb_prints_and_writes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inspect prints a table and, asked to, writes a page that needs no other file."""
    assert main(["inspect", "--data", str(world), "--out", str(tmp_path / "out")]) == 0

    page = (tmp_path / "out" / "inspection.html").read_text()
    saved = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert saved["train"]["users"] == 50
    assert "what looks wrong:\n  nothing" in capsys.readouterr().out
    assert "<svg" in page
    assert "src=" not in page
    assert "<link" not in page
