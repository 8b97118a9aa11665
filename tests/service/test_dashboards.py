"""Every panel and rule returns what it should, from real services through a real Prometheus.

With ``PICTURES=docs/images`` in the environment the pictures of the consoles in the documentation
are made anew (``make pictures``): the load then goes on for five minutes before.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from model_store import ModelStore
from service.embedded_redis import find_server
from service.metrics import REGISTRY

from .conftest import serving, wait_for

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "ctr.yml").read_text())["groups"]
PICTURES = os.environ.get("PICTURES")
SCRAPES = 300 if PICTURES else 5


def load(name: str) -> ModuleType:
    """Import one of the scripts of deploy/, under the name by which they know each other."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


PANELS = load("panels").DASHBOARDS
DASHBOARDS = load("dashboards")
LINES = [
    pytest.param(line, id=f"{dashboard.name}: {panel.title}: {line.legend}")
    for dashboard in PANELS
    for panel in dashboard.panels
    for line in panel.lines
]
RARE = [param for param in LINES if param.values[0].rare]
ALERTS = {
    rule["alert"]: rule["expr"] for group in RULES for rule in group["rules"] if "alert" in rule
}
RECORDED = [rule["record"] for group in RULES for rule in group["rules"] if "record" in rule]


class Watched:
    """A Prometheus and its answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.address = str(client.base_url)

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def numbers(self, expr: str) -> list[float]:
        return [float(series["value"][1]) for series in self.query(expr)]

    def has(self, *exprs: str) -> bool:
        """Whether each expression is answered with a number."""
        with suppress(httpx.TransportError, ValueError):
            return all(any(map(math.isfinite, self.numbers(expr))) for expr in exprs)
        return False


class Users:
    """Look, click, come back, click what others have not seen, and make mistakes.

    Args:
        client: speaks to the service.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._random = np.random.default_rng(7)
        self._videos = [f"dash{i}" for i in range(200)]
        body = [
            {"video_id": video, "category": i % 4, "features": self._features()}
            for i, video in enumerate(self._videos)
        ]
        client.put("/videos", json={"videos": body}).raise_for_status()

    def visit(self) -> None:
        """One user clicks, then asks for a ranking; one caller in a few is mistaken."""
        user = f"dash{self._random.integers(60)}"
        now = time.time_ns() // 1_000_000
        # In time, late, and again.
        times = (now, now - 500, now)
        videos = self._random.choice(self._videos, 2).tolist()
        clicks = [
            {"user_id": user, "video_id": video, "timestamp": at}
            for video, at in zip((*videos, videos[0]), times, strict=True)
        ]
        if self._random.random() < 0.5:
            clicks[1]["timestamp"] = now + 3_600_000
        self._post("/events", {"events": clicks})
        count = int(self._random.integers(20, 120))
        candidates = self._random.choice(self._videos, count, replace=False).tolist()
        asked = {"user_id": user, "candidates": [{"video_id": video} for video in candidates]}
        for _ in range(2):
            self._post("/score", asked)
        if self._random.random() < 0.1:
            self._post("/score", {"user_id": user, "candidates": "none"})

    def _features(self) -> list[float]:
        return self._random.normal([0, 0, 2], [0.5, 0.5, 1]).tolist()

    def _post(self, path: str, body: object) -> None:
        # What comes back is for Prometheus to tell.
        self._client.post(path, json=body)


@contextmanager
def in_use(address: str) -> Iterator[None]:
    """Users, now more and now fewer of them."""
    stop = threading.Event()
    with httpx.Client(base_url=address, timeout=20) as client:
        users = Users(client)

        def keep_using() -> None:
            while not stop.wait(0.06 + 0.04 * math.sin(time.monotonic() / 15)):
                users.visit()

        thread = threading.Thread(target=keep_using)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def watching(port: int, directory: Path) -> Iterator[Watched]:
    """Prometheus with the project's rules and consoles, on one service."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus on the PATH: apt-get install prometheus")
    conf = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    conf["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    conf["rule_files"] = [str(DEPLOY / "prometheus" / "rules" / "*.yml")]
    service = next(job for job in conf["scrape_configs"] if job["job_name"] == "ctr")
    conf["scrape_configs"] = [service]
    del service["dns_sd_configs"]
    service["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(conf))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = probe.getsockname()[1]
    consoles = DEPLOY / "prometheus" / "consoles"
    command = [
        binary,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
        f"--web.console.templates={consoles}",
        f"--web.console.libraries={consoles}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=20) as asking:
            prometheus = Watched(asking)

            def up() -> bool:
                assert process.poll() is None, (directory / "log").read_text()
                return prometheus.has("up")

            wait_for(up)
            yield prometheus
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def watched(client: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A healthy service of two workers in use, and every rule evaluated once it was."""
    port = client.base_url.port
    assert port is not None
    directory = tmp_path_factory.mktemp("prometheus")
    with in_use(str(client.base_url)), watching(port, directory) as prometheus:
        enough = f"sum(count_over_time(up[1h])) >= {SCRAPES}"
        wait_for(lambda: prometheus.has(enough, *RECORDED), seconds=SCRAPES + 60)
        yield prometheus


@pytest.fixture(scope="module")
def without_redis(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service in use whose Redis has been killed."""
    directory = tmp_path_factory.mktemp("troubled")
    path = directory / "r.sock"
    command = [str(find_server()), "--port", "0", "--unixsocket", str(path), "--save", ""]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL) as redis:
        wait_for(path.exists)
        try:
            flags = ("--redis-url", f"unix://{path}")
            with serving(store, directory, *flags) as client:
                port = client.base_url.port
                assert port is not None
                with in_use(str(client.base_url)), watching(port, directory) as prometheus:
                    answered = 'rate(ctr_requests_total{route="/score",status="200"}[5m]) > 0'
                    wait_for(lambda: prometheus.has(answered))
                    os.kill(redis.pid, signal.SIGKILL)
                    wait_for(lambda: prometheus.has("sum(rate(ctr_degraded_total[5m])) > 0"))
                    yield prometheus
        finally:
            redis.kill()


@pytest.mark.timeout(SCRAPES + 120)
@pytest.mark.parametrize("line", LINES)
def test_a_panel_shows_numbers(watched: Watched, line: Any) -> None:
    """Each expression of each panel is answered, with a number unless all is well."""
    found = watched.numbers(line.expr)

    assert line.rare or any(map(math.isfinite, found))


@pytest.mark.parametrize("line", RARE)
def test_what_is_rare_shows_when_it_happens(without_redis: Watched, line: Any) -> None:
    """What a panel shows only in trouble is shown when Redis is gone."""
    wait_for(lambda: any(number > 0 for number in without_redis.numbers(line.expr)))


@pytest.mark.parametrize("alert", ["CtrRedisDown", "CtrDegraded", "CtrErrorBudgetBurnsFast"])
def test_alerts_hold_when_redis_is_gone(without_redis: Watched, alert: str) -> None:
    """A service that has lost its Redis makes the conditions true that wake somebody."""
    wait_for(lambda: without_redis.has(ALERTS[alert]))


@pytest.mark.parametrize("line", LINES)
def test_a_panel_asks_for_metrics_that_exist(line: Any) -> None:
    """Each metric of a panel is one of the service, or recorded by a rule."""
    named = set(re.findall(r"[a-z_:]*\bctr_[a-z0-9_:]+", line.expr))

    assert named
    assert named <= set(REGISTRY._names_to_collectors) | set(RECORDED)


@pytest.mark.parametrize("record", RECORDED)
def test_what_is_recorded_is_numbers(watched: Watched, record: str) -> None:
    """Each recording rule has recorded a number."""
    assert watched.has(record)


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


@pytest.mark.parametrize("dashboard", PANELS, ids=lambda dashboard: dashboard.name)
def test_a_console_is_rendered(watched: Watched, dashboard: Any) -> None:
    """Each console template is rendered, with values in its tables."""
    page = watched.get(f"/consoles/{dashboard.name}.html")

    assert page.status_code == 200, page.text
    values = page.text.count('<td class="value">')
    assert values >= sum(not line.rare for panel in dashboard.panels for line in panel.lines)
    assert "{{" not in page.text


@pytest.mark.timeout(SCRAPES + 120)
@pytest.mark.parametrize("dashboard", PANELS, ids=lambda dashboard: dashboard.name)
def test_a_browser_draws_the_console(watched: Watched, dashboard: Any, tmp_path: Path) -> None:
    """A browser draws a line for every expression that is not rare, and meets no error."""
    address = f"{watched.address}/consoles/{dashboard.name}.html?minutes={5 if PICTURES else 1}"
    page = browse(tmp_path, "--dump-dom", "--window-size=1400,800", address)
    height = re.search(r'data-height="(\d+)"', page)
    kinds = [(panel.kind, line.rare) for panel in dashboard.panels for line in panel.lines]

    assert height, "not drawn"
    assert page.count("<polyline ") >= kinds.count(("lines", False))
    assert page.count('class="bar"') >= 10 * kinds.count(("buckets", False))
    assert 'class="none error"' not in page
    if PICTURES:
        picture = (ROOT / PICTURES / f"console_{dashboard.name}.png").resolve()
        browse(tmp_path, f"--screenshot={picture}", f"--window-size=1400,{height[1]}", address)
        assert picture.stat().st_size > 20_000


def browse(directory: Path, *arguments: str) -> str:
    """Run a browser without a window on a page, for as long as the page has something to do."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={directory}", "--virtual-time-budget=10000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


def test_what_is_deployed_is_what_is_defined() -> None:
    """Dashboards and consoles on disk are those that dashboards.py writes."""
    for path, text in DASHBOARDS.files().items():
        assert path.read_text() == text, f"{path.name} is stale: python deploy/dashboards.py"
