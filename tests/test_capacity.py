"""The worked example of the documentation is what the script works out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.capacity import RESULTS, Costs, Load, show, work_out

DOC = Path(__file__).parents[1] / "docs" / "capacity.md"


@pytest.fixture
def costs() -> Costs:
    """As measured."""
    return Costs.measured(json.loads((RESULTS / "state.json").read_text()), batched=False)


def test_the_worked_example_is_what_the_script_says(costs: Costs) -> None:
    """Every line of it: results that were measured anew are written down anew."""
    summary = RESULTS / "summary.json"
    rate = json.loads(summary.read_text()).get("score_200_rps", 0.0) if summary.exists() else 0.0
    text = DOC.read_text()
    for line in show(Load(), costs, work_out(Load(), costs, rate)).splitlines():
        assert line in text


def test_twice_the_users_take_twice_the_memory(costs: Costs) -> None:
    """And clicked videos live as long as two idle times of a user."""
    once, twice = (work_out(replace(Load(), daily_users=users), costs, 0.0) for users in (1e6, 2e6))
    longer = work_out(replace(Load(), idle_days=60.0), costs, 0.0)

    assert twice.user_gib == pytest.approx(2 * once.user_gib)
    assert twice.redis_cores > once.redis_cores
    load = Load()
    added = load.new_videos * load.clicked_share * 2 * 30
    assert longer.videos - work_out(load, costs, 0.0).videos == pytest.approx(added)
