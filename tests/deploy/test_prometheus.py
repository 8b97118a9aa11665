"""What Prometheus is told: valid, of metrics that exist, proven by cases, and explained."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service import metrics

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules" / "ctr.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on the PATH: apt-get install prometheus")
    command = [found, *arguments]
    return subprocess.run(
        command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=100, check=False
    )


def known_names() -> set[str]:
    """Every series that the service can show."""
    assert metrics.REQUESTS in REGISTRY._collector_to_names
    return {
        name
        for names in REGISTRY._collector_to_names.values()
        for name in names
        if name.startswith("ctr_")
    }


def test_the_configuration_is_valid() -> None:
    """Promtool takes the configuration and the rules that it names."""
    done = promtool("check", "config", "prometheus.yml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


@pytest.mark.parametrize("cases", ["rules_test.yml", "rules_days_test.yml"])
def test_rules_fire_when_they_should(cases: str) -> None:
    """The unit tests of the rules pass."""
    done = promtool("test", "rules", cases)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_and_explained(alert: str) -> None:
    """Each alert has a case in which it fires, an entry in the runbook, and a link to it."""
    tests = [
        test
        for path in PROMETHEUS.glob("rules*_test.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
    ]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    rule = next(rule for rule in RULES if rule.get("alert") == alert)

    assert alert in fired
    assert f"\n## {alert}\n" in (ROOT / "docs" / "runbook.md").read_text()
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{alert.lower()}"
    assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_runbook_has_no_entry_too_many() -> None:
    """Each entry of the runbook belongs to an alert."""
    entries = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)

    assert sorted(entries) == sorted(ALERTS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_speak_of_metrics_that_exist(rule: dict[str, Any]) -> None:
    """Each metric in a rule is one of the service, or recorded by another rule."""
    named = set(re.findall(r"[a-z_:]*\bctr_[a-z0-9_:]+", rule["expr"]))

    assert named or rule["alert"] == "CtrDown"
    assert named <= known_names() | RECORDED
