"""Write the panels as Grafana's dashboards and as Prometheus' console templates.

``python deploy/dashboards.py`` writes both; with ``--check`` it ends with status 1 when what lies
there is something else.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, Dashboard, Line, Panel

_DEPLOY = Path(__file__).parent
_PAGE = _DEPLOY / "console_page.html"
_COLUMNS = 24
_WIDTH, _HEIGHT = 8, 7
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_SCHEMA_VERSION = 39
"""Of Grafana's dashboards; newer ones bring it up to date themselves."""
# Of Grafana's units, how a console template writes one.
_FORMATS = {
    "s": "humanizeDuration",
    "percentunit": "humanizePercentage",
    "reqps": "humanize",
    "short": "humanize",
}


def grafana(dashboard: Dashboard) -> str:
    """Write a dashboard as Grafana's JSON."""
    page = {
        "uid": f"ctr-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["click-through"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "panels": [_grafana_panel(*numbered) for numbered in enumerate(dashboard.panels)],
    }
    return json.dumps(page, indent=2) + "\n"


def _grafana_panel(place: int, panel: Panel) -> dict[str, Any]:
    across = _COLUMNS // _WIDTH
    drawn = _grafana_buckets(panel) if panel.kind == "buckets" else _grafana_lines(panel)
    return {
        "id": place + 1,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "gridPos": {
            "x": place % across * _WIDTH,
            "y": place // across * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        **drawn,
    }


def _grafana_lines(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [_grafana_target(*numbered) for numbered in enumerate(panel.lines)],
    }


def _grafana_buckets(panel: Panel) -> dict[str, Any]:
    # Asked for as a heatmap, the source takes each bucket's lower neighbour off.
    asked = {"format": "heatmap", "instant": True, "range": False}
    return {
        "type": "bargauge",
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "displayMode": "gradient",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        },
        "targets": [_grafana_target(*numbered) | asked for numbered in enumerate(panel.lines)],
    }


def _grafana_target(number: int, line: Line) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + number),
        "datasource": _SOURCE,
        "expr": line.expr,
        "legendFormat": line.legend,
    }


def console(dashboard: Dashboard) -> str:
    """Write a dashboard as a console template: values from Prometheus, drawn by the browser."""
    links = "".join(
        f'<a href="{d.name}.html"{" aria-current=page" if d is dashboard else ""}>'
        f"{html.escape(d.title.rpartition(': ')[2])}</a>"
        for d in DASHBOARDS
    )
    page = _PAGE.read_text().replace("@TITLE@", html.escape(dashboard.title))
    panels = "\n".join(map(_console_panel, dashboard.panels))
    return page.replace("@LINKS@", links).replace("@PANELS@", panels)


def _console_panel(panel: Panel) -> str:
    # Braces would be taken for the template's own.
    legends = [re.sub(r"{{(\w+)}}", r"[\1]", line.legend) for line in panel.lines]
    pairs = [[line.expr, legend] for line, legend in zip(panel.lines, legends, strict=True)]
    lines = html.escape(json.dumps(pairs))
    rows = "\n".join(map(_console_row, panel.lines, [panel] * len(panel.lines)))
    return (
        f"<section>\n<h2>{html.escape(panel.title)}</h2>\n<p>{html.escape(panel.meaning)}</p>\n"
        f'<div class="graph" data-kind="{panel.kind}" data-unit="{panel.unit}"'
        f' data-lines="{lines}"></div>\n'
        f"<table>\n{rows}\n</table>\n</section>"
    )


def _console_row(line: Line, panel: Panel) -> str:
    """Write the rows that a browser without scripts shows, too."""
    legend = re.sub(r"{{(\w+)}}", r"{{ .Labels.\1 }}", html.escape(line.legend))
    found = f"query `{line.expr}`"
    if panel.kind == "buckets":
        legend, found = f"at most {legend}", f'{found} | sortByLabel "le"'
    return (
        f"{{{{ range {found} }}}}<tr><td>{legend}</td>"
        f'<td class="value">{{{{ .Value | {_FORMATS[panel.unit]} }}}}</td></tr>{{{{ end }}}}'
    )


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
                print(f"{path.relative_to(_DEPLOY.parent)} is stale: python deploy/dashboards.py")
                stale = 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
