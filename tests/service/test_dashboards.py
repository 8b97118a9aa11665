"""Every panel and rule returns what it should, from a real service through a real Prometheus."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "ctr.yml").read_text())["groups"]


def load_panels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("panels", DEPLOY / "panels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["panels"] = module
    spec.loader.exec_module(module)
    return module


PANELS = load_panels()
LINES = [
    pytest.param(line, id=f"{dashboard.name}: {panel.title}: {line.legend}")
    for dashboard in PANELS.DASHBOARDS
    for panel in dashboard.panels
    for line in panel.lines
]
ALERTS = {
    rule["alert"]: rule["expr"] for group in RULES for rule in group["rules"] if "alert" in rule
}


class Watched:
    """A Prometheus and its answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def numbers(self, expr: str) -> list[float]:
        return [float(series["value"][1]) for series in self.query(expr)]


def use(client: httpx.Client) -> None:
    """Videos, clicks with several verdicts, rankings, a mistake."""
    videos = [{"video_id": f"d{i}", "category": i, "features": [0.1, 0.2, 0.3]} for i in range(3)]
    client.put("/videos", json={"videos": videos})
    now = time.time_ns() // 1_000_000
    times = (now, now - 5, now, now + 3_600_000)
    clicks = [{"user_id": "dash", "video_id": "d1", "timestamp": moment} for moment in times]
    client.post("/events", json={"events": clicks})
    candidates = [{"video_id": f"d{i}"} for i in range(3)]
    client.post("/score", json={"user_id": "dash", "candidates": candidates})
    client.post("/score", json={"user_id": "nobody", "candidates": "none"})


@pytest.fixture(scope="module")
def watched(client: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Prometheus with the project's rules and consoles, on a service that is in use."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus on the PATH: apt-get install prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    conf = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    conf["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    conf["rule_files"] = [str(DEPLOY / "prometheus" / "rules" / "*.yml")]
    service = next(job for job in conf["scrape_configs"] if job["job_name"] == "ctr")
    conf["scrape_configs"] = [service]
    del service["dns_sd_configs"]
    service["static_configs"] = [{"targets": [f"127.0.0.1:{client.base_url.port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(conf))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    consoles = DEPLOY / "prometheus" / "consoles"
    command = [
        binary,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.console.templates={consoles}",
        f"--web.console.libraries={consoles}",
    ]
    stop = threading.Event()

    def keep_using() -> None:
        with httpx.Client(base_url=client.base_url, timeout=20) as user:
            while not stop.wait(0.05):
                use(user)

    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    users = threading.Thread(target=keep_using)
    users.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as asking:
            prometheus = Watched(asking)
            deadline = time.monotonic() + 60
            while not settled(prometheus):
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield prometheus
    finally:
        stop.set()
        users.join()
        process.terminate()
        process.wait(20)


def settled(prometheus: Watched) -> bool:
    """Whether what is recorded, each group of rules in its own time, is numbers."""
    with suppress(httpx.TransportError, ValueError):
        found = prometheus.numbers('route:ctr_request_seconds:p99_rate5m{route="/score"}')
        lag = prometheus.numbers("ctr_profile_lag_seconds:p95_rate5m")
        failed = prometheus.numbers("route:ctr_requests_failed:ratio_rate5m")
        return all(any(map(math.isfinite, each)) for each in (found, lag, failed))
    return False


@pytest.mark.parametrize("line", LINES)
def test_a_panel_shows_numbers(watched: Watched, line: Any) -> None:
    """Each expression of each panel is answered, with a number unless all is well."""
    found = watched.numbers(line.expr)

    assert line.rare or any(map(math.isfinite, found))


@pytest.mark.parametrize("alert", ALERTS)
def test_no_alert_fires_on_a_healthy_service(watched: Watched, alert: str) -> None:
    """Each alert's expression is answered; none holds, but for the clicks from the future."""
    found = watched.query(ALERTS[alert])

    assert bool(found) == (alert == "CtrEventsTurnedAway")


def test_rules_are_evaluated_without_an_error(watched: Watched) -> None:
    """Prometheus reports every rule healthy."""
    groups = watched.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == sum(len(group["rules"]) for group in RULES)
    assert {rule["health"] for rule in rules} == {"ok"}


def test_both_workers_are_seen(watched: Watched) -> None:
    """The metrics are those of all workers."""
    assert watched.numbers("ctr_workers") == [2.0]


@pytest.mark.parametrize("dashboard", [d.name for d in PANELS.DASHBOARDS])
def test_a_console_is_rendered(watched: Watched, dashboard: str) -> None:
    """Each console template is rendered, with values in its tables."""
    page = watched.get(f"/consoles/{dashboard}.html")

    assert page.status_code == 200, page.text
    assert page.text.count('<td class="value">') >= 3
    assert "{{" not in page.text


def test_what_is_deployed_is_what_is_defined() -> None:
    """Dashboards and consoles on disk are those that panels.py writes."""
    for path, text in PANELS.files().items():
        assert path.read_text() == text, f"{path.name} is stale: run python deploy/panels.py"
