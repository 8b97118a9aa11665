"""Grafana finds its dashboards and their source, and knows every field of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("dashboards/*.json"))
}
PROVISIONING = GRAFANA / "provisioning"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def lost(given: object, kept: object, path: str = "") -> Iterator[str]:
    """Where what was given is not what came back."""
    if isinstance(given, dict):
        fields = kept if isinstance(kept, dict) else {}
        for key, value in given.items():
            yield from lost(value, fields.get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for place, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}/{place}")
    elif given != kept:
        yield path


def unknown_fields(dashboard: dict[str, Any]) -> list[str]:
    """What Grafana's own typed model of a dashboard does not take up."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: PLC0415
    from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: PLC0415

    register_default_plugins()
    taken = models.Dashboard.from_json(copy.deepcopy(dashboard))
    return list(lost(dashboard, json.loads(JSONEncoder(sort_keys=True).encode(taken))))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_every_field(name: str) -> None:
    """Each field of a dashboard is one of Grafana's model of it."""
    assert unknown_fields(DASHBOARDS[name]) == []


def test_the_model_would_notice() -> None:
    """A misspelt field is found, at any depth, so that the test above can fail."""
    dashboard = copy.deepcopy(DASHBOARDS["model"])
    dashboard["refesh"] = "10s"
    dashboard["panels"][0]["targets"][0]["legendFromat"] = "{{name}}"
    dashboard["panels"][0]["gridPos"]["width"] = 8

    assert sorted(unknown_fields(dashboard)) == [
        "/panels/0/gridPos/width",
        "/panels/0/targets/0/legendFromat",
        "/refesh",
    ]


def test_the_model_is_of_the_deployed_grafana() -> None:
    """The model that dashboards are held to is that of the image's version."""
    pytest.importorskip("grafana_foundation_sdk")
    deployed = SERVICES["grafana"]["image"].rpartition(":")[2]

    assert version("grafana-foundation-sdk").partition("!")[2] == deployed


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_ask_the_provisioned_source(name: str) -> None:
    """Each panel and each of its targets names the one provisioned source, by its uid."""
    provisioned = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    panels = DASHBOARDS[name]["panels"]

    assert all(panel["datasource"] == wanted for panel in panels)
    assert all(target["datasource"] == wanted for panel in panels for target in panel["targets"])
    assert "$" not in json.dumps(panels), "a variable, and none is defined"


def test_the_source_is_the_prometheus_of_the_project() -> None:
    """The source's address is the container that scrapes, on the port that it publishes."""
    provisioned = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]

    assert provisioned["datasources"][0]["url"] == f"http://prometheus:{port}"


def test_dashboards_lie_where_grafana_looks() -> None:
    """The provider's folder is the one that the dashboards are mounted to."""
    provisioned = yaml.safe_load((PROVISIONING / "dashboards" / "dashboards.yml").read_text())
    mounted = dict(
        volume.removesuffix(":ro").rsplit(":", 1) for volume in SERVICES["grafana"]["volumes"]
    )

    assert mounted["./deploy/grafana/dashboards"] == provisioned["providers"][0]["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


def test_nothing_is_there_twice() -> None:
    """Dashboards differ in uid and title, the panels of one in id."""
    for field in ("uid", "title"):
        assert len({dashboard[field] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for dashboard in DASHBOARDS.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    """Each panel has its own place within the 24 columns."""
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]

    assert all(0 <= place["x"] <= 24 - place["w"] for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart
