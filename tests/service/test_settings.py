"""Every setting is documented, a flag and a variable; what is set can be shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_store import CPU, GRAPHS_ONLY, ModelStore
from service.settings import Settings
from service.settings_page import listing, page, settings

from .conftest import ROOT

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CTR_")}


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *words]
    env = {**CLEAN, **variables}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=env, timeout=60
    )


def test_the_page_is_the_one_that_the_settings_make() -> None:
    """docs/configuration.md is what make docs writes."""
    written = (ROOT / "docs" / "configuration.md").read_text()

    assert written == page(), "docs/configuration.md is stale: make docs"


def test_every_setting_has_a_meaning_and_no_other_is_described() -> None:
    """The docstring of the settings names each field, once."""
    described = settings()

    assert [s.name for s in described] == list(Settings.model_fields)
    assert all(len(s.meaning) > 10 for s in described)
    names = (Settings.__doc__ or "").split("Attributes:")[1].splitlines()
    starts = [line.split(":")[0].strip() for line in names if line[8:9].strip() and ":" in line]
    assert starts == list(Settings.model_fields)


def test_the_head_is_the_graph_where_that_is_wanted() -> None:
    """The compiled one is what is found otherwise."""
    store = Path("store")

    assert Settings(model_store=store, device="cpu").find_device() == CPU
    assert Settings(model_store=store, device="cpu", head="graph").find_device() == GRAPHS_ONLY


def test_every_setting_is_read_from_its_variable_and_its_flag() -> None:
    """Other than default values come through both ways, the flag wins."""
    other = {
        "embedded_fsync": "always", "log_level": "debug", "log_format": "text",
        "access_log": "all", "device": "cpu", "head": "graph", "model_store": "elsewhere", "data_dir": "there",
        "host": "::1", "redis_url": "redis://h:1/2", "gpu_arena": "next_power_of_two",
    }  # fmt: skip
    for setting in settings():
        value = other.get(setting.name, "true" if setting.switch else "77")
        line = f"{setting.variable}={value}"
        assert setting.name in other or setting.default != value
        flag = (setting.flag,) if setting.switch else (setting.flag, value)
        variables = {setting.variable: value}
        if setting.name in ("model_store", "port", "traces", "redis_url", "slow_ms"):
            # The others take the same way through one table; a process each would be slow.
            assert line in run("settings", *flag, **{setting.variable: "0"}).stdout.replace(
                ".0", ""
            )
            assert line in run("settings", **variables).stdout.replace(".0", "")
        kept = Settings(**{"model_store": "x", setting.name: value})
        assert line in listing(kept).replace(".0", "")


def test_what_is_not_set_is_shown_as_such() -> None:
    """Also while a setting that must be given is not; the alias of the address counts."""
    done = run("settings", REDIS_URL="redis://elsewhere")

    assert done.returncode == 0
    assert "CTR_MODEL_STORE=\n" in done.stdout
    assert "CTR_REDIS_URL=redis://elsewhere\n" in done.stdout
    assert "CTR_REDIS_URL=\n" in run("settings", CTR_REDIS_URL="").stdout


def test_a_variable_that_is_set_to_nothing_is_not_set() -> None:
    """As an environment file with empty lines, or a compose file, sets it: defaults hold."""
    done = run("settings", CTR_REDIS_URL="", REDIS_URL="redis://elsewhere", CTR_WORKERS="")

    assert done.returncode == 0, done.stderr
    assert "CTR_REDIS_URL=redis://elsewhere\n" in done.stdout
    assert "CTR_WORKERS=1\n" in done.stdout


@pytest.mark.parametrize("verb", ["serve", "settings", "doctor"])
def test_a_value_that_is_no_good_is_named(verb: str, tmp_path: Path) -> None:
    """By flag and variable, with what is wrong; a failing status, no trace of the program."""
    done = run(verb, "--workers", "0", CTR_MODEL_STORE=str(tmp_path))
    told = done.stdout + done.stderr

    assert done.returncode in (1, 2)
    assert "--workers (CTR_WORKERS): Input should be greater than or equal to 1" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CTR_REDIS_URL", "rediss//h", "the address of Redis starts with 'rediss//h'"),
        ("CTR_REDIS_URL", "redis+sentinel://h", "lacks the master's name"),
        (
            "CTR_REDIS_URL",
            "redis+cluster://:secret@h:no",
            "the address of Redis cannot be understood",
        ),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is 'zipkin'"),
        ("CTR_DATA_DIR", "/proc/none", "/proc/none"),
    ],
)
def test_a_value_that_leads_nowhere_ends_the_start(
    variable: str, value: str, words: str, workers: str, store: ModelStore
) -> None:
    """In one line, before any worker is begun, with a failing status."""
    given = {"CTR_TRACES": "true", "CTR_WORKERS": workers, "CTR_MODEL_STORE": str(store.root)}
    # Several workers need a directory whatever Redis they have.
    if not (variable == "CTR_DATA_DIR" and workers == "1"):
        given["CTR_REDIS_URL"] = "redis://127.0.0.1:1"
    done = run("serve", **{**given, variable: value})
    [line] = map(json.loads, done.stderr.splitlines())

    assert done.returncode == 1
    assert line["level"] == "error"
    assert words in line["event"]
    assert "exception" not in line
    assert "secret" not in done.stderr


def test_help_lists_every_flag() -> None:
    """Of serve, with the default."""
    told = run("--help").stdout

    for setting in settings():
        assert setting.flag in told
    assert "default: 8000" in told
