"""The Kubernetes manifests are valid, and speak of things that exist."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service import api, metrics
from service.doctor import WORKER_MB
from service.settings import Settings

yaml = pytest.importorskip("yaml")

# From SIGTERM to the end of a process, at the longest.
DRAIN_SECONDS = sum(
    Settings.model_fields[name].default for name in ("drain_notice_seconds", "drain_seconds")
)

BASE = Path(__file__).parents[2] / "deploy" / "kubernetes"
# Kinds that an operator brings: Kubernetes' own schema does not know them.
FOREIGN = {"ServiceMonitor"}
# unhealthyPodEvictionPolicy came with 1.26; the newest has what was removed since.
VERSIONS = ("1.26", "1.29", "1.32")


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def manifests() -> dict[str, dict[str, Any]]:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    found = [document for name in listed for document in documents((BASE / name).read_text())]
    return {document["kind"]: document for document in found}


@pytest.fixture
def pod() -> dict[str, Any]:
    return manifests()["Deployment"]["spec"]["template"]


def test_every_manifest_is_listed() -> None:
    """Each file of the base is among its resources."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]

    assert {p.name for p in BASE.glob("*.yaml")} == {*listed, "kustomization.yaml"}


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_follow_the_api_schema(version: str) -> None:
    """Each manifest passes the strict schema of several versions of Kubernetes."""
    validator = pytest.importorskip("kubernetes_validate")

    checked = [document for kind, document in manifests().items() if kind not in FOREIGN]
    for document in checked:
        validator.validate(document, version, strict=True)

    assert len(checked) >= 5


def test_the_schema_would_notice() -> None:
    """A misspelt field is refused, so that the test above can fail."""
    validator = pytest.importorskip("kubernetes_validate")
    deployment = manifests()["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}

    with pytest.raises(validator.ValidationError, match="livenesProbe"):
        validator.validate(deployment, VERSIONS[-1], strict=True)


def test_the_base_renders() -> None:
    """Kustomize takes the base, and what it writes passes the schema as well."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on the PATH")
    validator = pytest.importorskip("kubernetes_validate")
    command = [kubectl, "kustomize", str(BASE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    rendered = documents(done.stdout)
    for document in rendered:
        if document["kind"] not in FOREIGN:
            validator.validate(document, VERSIONS[-1], strict=True)

    assert {document["kind"] for document in rendered} == set(manifests())


def test_selectors_select_the_pods(pod: dict[str, Any]) -> None:
    """Deployment, Service and PodDisruptionBudget mean these pods, the ServiceMonitor the Service."""
    found = manifests()
    labels = pod["metadata"]["labels"].items()
    spread = pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    service = found["Service"]

    assert spread.items() <= labels
    assert service["spec"]["selector"].items() <= labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"].items() <= labels
    monitored = found["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= service["metadata"]["labels"].items()


def test_names_lead_somewhere(pod: dict[str, Any]) -> None:
    """Ports, claims and the scaled deployment are referred to by the names that they have."""
    found = manifests()
    container = pod["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    probes = [container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")]

    assert {probe["httpGet"]["port"] for probe in probes} <= ports
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports
    monitored = {endpoint["port"] for endpoint in found["ServiceMonitor"]["spec"]["endpoints"]}
    assert monitored <= {port["name"] for port in found["Service"]["spec"]["ports"]}
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {found["PersistentVolumeClaim"]["metadata"]["name"]}
    scaled = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert scaled == found["Deployment"]["metadata"]["name"]


def test_probes_ask_routes_that_exist(pod: dict[str, Any]) -> None:
    """What is probed and scraped is served."""
    container = pod["spec"]["containers"][0]
    asked = {
        container[f"{n}Probe"]["httpGet"]["path"] for n in ("startup", "liveness", "readiness")
    }
    asked |= {e["path"] for e in manifests()["ServiceMonitor"]["spec"]["endpoints"]}

    assert asked <= {getattr(route, "path", None) for route in api.router.routes}


def test_variables_are_settings(pod: dict[str, Any]) -> None:
    """Each CTR_ variable is a setting, and its value, where it is given here, is valid."""
    variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
    names = {name.removeprefix("CTR_").lower() for name in variables}

    assert names <= set(Settings.model_fields)
    given = {name: value for name, value in variables.items() if value is not None}
    fields = {name.removeprefix("CTR_").lower(): value for name, value in given.items()}
    Settings(model_store=Path("x"), **fields)


def test_pods_are_counted_by_a_metric_that_exists() -> None:
    """The autoscaler asks for a gauge of the service, below what a worker lets in."""
    scaler = manifests()["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]

    assert scaler["metric"]["name"] == metrics.ROWS_IN_FLIGHT._name
    limit = Settings.model_fields["max_candidates_in_flight"].default
    assert int(scaler["target"]["averageValue"]) < limit


def test_a_pod_has_time_to_drain(pod: dict[str, Any]) -> None:
    """Between the request to end and the kill lie preStop and the service's own limit."""
    stop = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]

    assert pod["spec"]["terminationGracePeriodSeconds"] > int(stop[1]) + DRAIN_SECONDS


def test_the_caches_of_a_pod_fit(pod: dict[str, Any]) -> None:
    """A worker has two of them while a version is taken up; it is not killed for its memory."""
    container = pod["spec"]["containers"][0]
    given = {v["name"]: v.get("value") for v in container["env"]}
    cache = int(given.get("CTR_ROW_CACHE_MB", Settings.model_fields["row_cache_mb"].default))
    limit = container["resources"]["limits"]["memory"]

    assert int(given["CTR_WORKERS"]) * (2 * cache + WORKER_MB) < 1024 * int(
        limit.removesuffix("Gi")
    )


def test_pods_may_do_nothing_but_serve(pod: dict[str, Any]) -> None:
    """No root, no writable root file system, no capabilities, no token of the cluster."""
    container = pod["spec"]["containers"][0]["securityContext"]

    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}
