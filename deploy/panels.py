"""The panels, once: as Grafana's dashboards and as Prometheus' console templates.

``python deploy/panels.py`` writes both; with ``--check`` it ends with status 1 when what lies there
is something else.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_DEPLOY = Path(__file__).parent
_COLUMNS = 24
_WIDTH, _HEIGHT = 8, 7
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
# Of Grafana's units, how a console template writes one.
_FORMATS = {
    "s": "humanizeDuration",
    "percentunit": "humanizePercentage",
    "reqps": "humanize",
    "short": "humanize",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One expression of a panel.

    Attributes:
        legend: what a series is called; ``{{label}}`` stands for a label's value.
        expr: in Prometheus' language.
        rare: returns nothing while all is well.
    """

    legend: str
    expr: str
    rare: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: what it shows in Grafana's unit, and what it means when it moves."""

    title: str
    unit: str
    meaning: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels; ``name`` is its file and its address."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def _quantiles(metric: str, selector: str = "") -> tuple[Line, ...]:
    buckets = f"sum by (le) (rate({metric}_bucket{selector}[5m]))"
    return (
        Line("p50", f"histogram_quantile(0.5, {buckets})"),
        Line("p99", f"histogram_quantile(0.99, {buckets})"),
    )


SERVICE = Dashboard(
    "service",
    "Click-through: service",
    (
        Panel(
            "Requests",
            "reqps",
            "Answers per second by route.",
            (Line("{{route}}", "sum by (route) (rate(ctr_requests_total[5m]))"),),
        ),
        Panel(
            "Failures",
            "percentunit",
            "Share of rankings and of calls with events that failed: 5xx, or 429 of a full service. "
            "The objective is 0.1 %.",
            (Line("{{route}}", "route:ctr_requests_failed:ratio_rate5m"),),
        ),
        Panel(
            "Errors by status",
            "reqps",
            "Answers per second that were errors, the caller's (4xx) included.",
            (
                Line(
                    "{{route}} {{status}}",
                    'sum by (route, status) (rate(ctr_requests_total{status!~"2.."}[5m]))',
                    rare=True,
                ),
            ),
        ),
        Panel(
            "Latency of a ranking",
            "s",
            "From the first byte of the request to the last of the answer, inside the service.",
            _quantiles("ctr_request_seconds", '{route="/score"}'),
        ),
        Panel(
            "Latency by stage",
            "s",
            "state: asking Redis. user: the profile. model: encoding videos and scoring. "
            "append: writing events. profile: computing profiles.",
            (Line("{{stage}} p99", "stage:ctr_stage_seconds:p99_rate5m"),),
        ),
        Panel(
            "Candidates",
            "short",
            "Candidates per second that callers ask to be ranked: what the processors work on.",
            (Line("candidates", "sum(rate(ctr_candidates_total[5m]))"),),
        ),
        Panel(
            "Candidates in flight",
            "short",
            "Candidates being ranked or waiting. Near the limit (20,000 a worker): calls get 429.",
            (Line("{{instance}}", "sum by (instance) (ctr_candidates_in_flight)"),),
        ),
        Panel(
            "Encoded videos in memory",
            "percentunit",
            "Share of the candidates whose encoded video was in memory. Falls after a start or a "
            "promotion; for long: the memory for rows is too small.",
            (
                Line(
                    "hits",
                    'sum(rate(ctr_row_cache_total{outcome="hit"}[5m])) '
                    "/ sum(rate(ctr_row_cache_total[5m]))",
                ),
            ),
        ),
        Panel(
            "Rankings past their deadline",
            "reqps",
            "Rankings per second that were dropped because their caller no longer waits.",
            (Line("expired", "sum(rate(ctr_expired_total[5m]))"),),
        ),
        Panel(
            "Degraded rankings",
            "reqps",
            "Rankings per second without Redis: last_profile from memory, no_history as for a new "
            "user.",
            (Line("{{level}}", "sum by (level) (rate(ctr_degraded_total[5m]))", rare=True),),
        ),
        Panel(
            "Workers",
            "short",
            "Processes that answer. Fewer than were started: one does not come up.",
            (Line("{{instance}}", "sum by (instance) (ctr_workers)"),),
        ),
    ),
)

STATE = Dashboard(
    "state",
    "Click-through: state",
    (
        Panel(
            "Events by verdict",
            "reqps",
            "accepted and late changed a history; duplicate, too_old and deleted changed nothing; "
            "future and invalid were turned away.",
            (Line("{{verdict}}", "sum by (verdict) (rate(ctr_events_total[5m]))"),),
        ),
        Panel(
            "Profiles by origin",
            "reqps",
            "hit: stored and fresh. empty: no clicks yet. computed: on the spot. background: ahead "
            "of time. dropped: the queue was full or too slow.",
            (Line("{{outcome}}", "sum by (outcome) (rate(ctr_profile_cache_total[5m]))"),),
        ),
        Panel(
            "Profile lag",
            "s",
            "From the acknowledged click to the stored profile, in the background. Over a second: "
            "rankings compute profiles themselves and are slower.",
            _quantiles("ctr_profile_lag_seconds"),
        ),
        Panel(
            "Users in the background queue",
            "short",
            "Users whose profile is to be computed. Growing: too little processor.",
            (Line("{{instance}}", "sum by (instance) (ctr_profiles_waiting)"),),
        ),
        Panel(
            "Redis: workers that do not reach it",
            "short",
            "Workers whose circuit is open: clicks are refused, rankings degraded.",
            (Line("{{instance}}", "sum by (instance) (ctr_redis_circuit_open)"),),
        ),
        Panel(
            "Redis: retries and failures",
            "reqps",
            "Calls that were tried again, and calls that were given up, by error.",
            (
                Line("tried again", "sum(rate(ctr_redis_retries_total[5m]))"),
                Line(
                    "given up: {{error}}",
                    "sum by (error) (rate(ctr_redis_failures_total[5m]))",
                    rare=True,
                ),
            ),
        ),
    ),
)

MODEL = Dashboard(
    "model",
    "Click-through: model",
    (
        Panel(
            "Version that answers",
            "short",
            "Containers by version. Two for longer than a promotion takes: one of them refused it.",
            (Line("{{name}} {{version}}", "count by (name, version) (ctr_model_info == 1)"),),
        ),
        Panel(
            "Refused versions",
            "short",
            "Promoted versions that could not be opened within the last hour. The log says why.",
            (Line("{{instance}}", "sum by (instance) (increase(ctr_model_failures_total[1h]))"),),
        ),
        Panel(
            "Model runs of rankings",
            "s",
            "Encoding videos and scoring candidates, per ranking.",
            _quantiles("ctr_stage_seconds", '{stage="model"}'),
        ),
    ),
)

DASHBOARDS = (SERVICE, STATE, MODEL)


def grafana(dashboard: Dashboard) -> str:
    """Write a dashboard as Grafana's JSON."""
    panels = []
    for place, panel in enumerate(dashboard.panels):
        across = _COLUMNS // _WIDTH
        panels.append(
            {
                "id": place + 1,
                "type": "timeseries",
                "title": panel.title,
                "description": panel.meaning,
                "datasource": _SOURCE,
                "gridPos": {
                    "x": place % across * _WIDTH,
                    "y": place // across * _HEIGHT,
                    "w": _WIDTH,
                    "h": _HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "options": {
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                },
                "targets": [
                    {
                        "refId": chr(ord("A") + number),
                        "datasource": _SOURCE,
                        "expr": line.expr,
                        "legendFormat": line.legend,
                    }
                    for number, line in enumerate(panel.lines)
                ],
            }
        )
    page = {
        "uid": f"ctr-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["click-through"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "panels": panels,
    }
    return json.dumps(page, indent=2) + "\n"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@TITLE@</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 1rem; color: #1d2430; background: #f5f6f8 }
nav a { margin-right: 1rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem }
section { background: #fff; border: 1px solid #d9dde3; border-radius: 6px; padding: .75rem }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 0 0 .25rem }
p { color: #5b6675; margin: .25rem 0 .5rem }
svg { width: 100%; height: 7rem; background: #fafbfc }
td { padding: 0 .75rem 0 0 } td.value { text-align: right; font-variant-numeric: tabular-nums }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke }
</style>
</head>
<body>
<nav>@LINKS@</nav>
<h1>@TITLE@</h1>
<main>
@PANELS@
</main>
<script>
const COLOURS = ["#2463eb", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#0b7285", "#5f3dc4"];
const UNITS = {
  s: v => v < 1 ? +(v * 1e3).toPrecision(3) + " ms" : +v.toPrecision(3) + " s",
  percentunit: v => +(v * 100).toPrecision(3) + "%",
};
async function series([expr, legend]) {
  const end = Date.now() / 1000;
  const asked = new URLSearchParams({query: expr, start: end - 3600, end, step: 15});
  const answer = await fetch("../api/v1/query_range?" + asked);
  return (await answer.json()).data.result.map(one => ({
    name: legend.replace(/\\[(\\w+)\\]/g, (_, label) => one.metric[label] ?? ""),
    points: one.values.map(([t, v]) => [t, +v]).filter(point => isFinite(point[1])),
  })).filter(one => one.points.length);
}
async function draw(svg) {
  const lines = (await Promise.all(JSON.parse(svg.dataset.lines).map(series))).flat();
  if (!lines.length) return;
  const all = lines.flatMap(line => line.points), times = all.map(point => point[0]);
  const top = Math.max(1e-9, ...all.map(point => point[1]));
  const first = Math.min(...times), span = Math.max(1, Math.max(...times) - first);
  const show = UNITS[svg.dataset.unit] ?? (v => +v.toPrecision(3));
  svg.replaceChildren(...lines.map((line, index) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    drawn.setAttribute("points", line.points.map(
      ([t, v]) => (t - first) / span * 400 + "," + (98 - v / top * 92)).join(" "));
    drawn.setAttribute("stroke", COLOURS[index % COLOURS.length]);
    return drawn;
  }));
  // The same rows as before, now in the colours of the lines.
  svg.nextElementSibling.replaceChildren(...lines.map((line, index) => {
    const row = document.createElement("tr"), name = row.insertCell(), value = row.insertCell();
    name.textContent = "\\u25cf " + line.name;
    name.style.color = COLOURS[index % COLOURS.length];
    value.textContent = show(line.points.at(-1)[1]);
    value.className = "value";
    return row;
  }));
}
const drawAll = () => document.querySelectorAll("svg").forEach(draw);
drawAll();
setInterval(() => location.reload(), 30000);
</script>
</body>
</html>
"""


def console(dashboard: Dashboard) -> str:
    """Write a dashboard as a console template: values from Prometheus, the last hour as lines."""
    links = "".join(f'<a href="{d.name}.html">{html.escape(d.title)}</a>' for d in DASHBOARDS)
    page = _PAGE.replace("@TITLE@", html.escape(dashboard.title)).replace("@LINKS@", links)
    return page.replace("@PANELS@", "\n".join(map(_console_panel, dashboard.panels)))


def _console_panel(panel: Panel) -> str:
    # Braces would be taken for the template's own.
    legends = [re.sub(r"{{(\w+)}}", r"[\1]", line.legend) for line in panel.lines]
    pairs = [[line.expr, legend] for line, legend in zip(panel.lines, legends, strict=True)]
    lines = html.escape(json.dumps(pairs))
    rows = "\n".join(
        f"{{{{ range query `{line.expr}` }}}}<tr><td>{_console_legend(line.legend)}</td>"
        f'<td class="value">{{{{ .Value | {_FORMATS[panel.unit]} }}}}</td></tr>{{{{ end }}}}'
        for line in panel.lines
    )
    return (
        f"<section>\n<h2>{html.escape(panel.title)}</h2>\n<p>{html.escape(panel.meaning)}</p>\n"
        f'<svg viewBox="0 0 400 100" preserveAspectRatio="none" data-unit="{panel.unit}"'
        f' data-lines="{lines}"></svg>\n'
        f"<table>\n{rows}\n</table>\n</section>"
    )


def _console_legend(legend: str) -> str:
    return re.sub(r"{{(\w+)}}", r"{{ .Labels.\1 }}", html.escape(legend))


def files() -> dict[Path, str]:
    """All that is written: path and text."""
    grafanas = {
        _DEPLOY / "grafana" / "dashboards" / f"{d.name}.json": grafana(d) for d in DASHBOARDS
    }
    consoles = {
        _DEPLOY / "prometheus" / "consoles" / f"{d.name}.html": console(d) for d in DASHBOARDS
    }
    return grafanas | consoles


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    stale = 0
    check = parser.parse_args().check
    for path, text in files().items():
        if check:
            if not path.is_file() or path.read_text() != text:
                print(f"{path.relative_to(_DEPLOY.parent)} is stale: run python deploy/panels.py")
                stale = 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
