"""The scripts that the images run: health check, first model, load."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_store import ModelStore

from .conftest import serving, tiny_draft

ROOT = Path(__file__).parents[2]
ITEMS = 120


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / script), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in the published layout: every user sees every video once and clicks every third."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(3)
    for space in ("train", "test"):
        rows = ["user_id,item_id,cate_id,is_click,timestamp"]
        rows += [
            f"{user},{item},{item % 4},{int(item % 3 == 0)},{1_600_000_000_000 + item}"
            for user in range(5)
            for item in range(ITEMS)
        ]
        (folder / f"{space}_data.csv").write_text("\n".join(rows) + "\n")
        features = random.random((ITEMS, 3), np.float32)
        np.save(folder / f"{space}_cover_image_feature.npy", features)
    return folder


def test_the_health_check_tells_ready_from_gone(client: httpx.Client) -> None:
    """The image's health check succeeds on a ready service and fails where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = run("healthcheck.py", CTR_PORT=str(probe.getsockname()[1]))
    ready = run("healthcheck.py", CTR_PORT=str(client.base_url.port))

    assert ready.returncode == 0, ready.stdout
    assert gone.returncode == 1
    assert "does not answer" in gone.stdout


def test_a_promoted_version_is_left_alone(store: ModelStore, log: Path) -> None:
    """Where a version is promoted the trainer of the compose project changes nothing."""
    before = store.current(), store.versions()
    done = run("first_model.py", "--store", str(store.root), "--work", str(log.parent))

    assert done.returncode == 0, done.stderr
    assert f"{before[0]} is promoted: nothing to do" in done.stdout
    assert (store.current(), store.versions()) == before
    assert not (log.parent / "version").exists()


def test_the_load_is_answered(client: httpx.Client, log: Path) -> None:
    """The load generator fills a service, ranks and clicks at its rate, and loses nothing."""
    address = str(client.base_url)
    done = run("load.py", "--url", address, "--data", str(log), "--rate", "20", "--seconds", "2")
    counts = json.loads(done.stdout.splitlines()[-1])

    assert done.returncode == 0, done.stderr
    assert counts["answered"] >= 20
    assert counts["clicks"] > 0
    assert re.search(
        r"^user \d, 40 clicks: the best of 100 videos\n  1. test-\d+ ", done.stdout, re.MULTILINE
    )
    assert {counts[way] for way in ("lost", "refused", "cut", "slow", "failed")} == {0}


@pytest.mark.parametrize("named", ["another-version", None])
def test_visitors_stay_away_from_another_model(
    client: httpx.Client, log: Path, named: str | None
) -> None:
    """Where the named version is not promoted, or none is named, nothing is registered or asked."""
    file = log.parent / "version"
    if named is not None:
        file.write_text(f"{named}\n")
    address = str(client.base_url)
    done = run("load.py", "--url", address, "--data", str(log), "--only-version", str(file))
    counts = json.loads(done.stdout.splitlines()[-1])

    assert done.returncode == 0, done.stderr
    assert "no visits" in done.stdout
    assert not any(counts.values())


def test_visitors_leave_when_another_model_is_promoted(
    redis_url: str, log: Path, tmp_path: Path
) -> None:
    """They visit while the named version answers, and end when the next one does."""
    store = ModelStore(tmp_path / "store")
    version = store.publish(tiny_draft())
    store.promote(version)
    (log.parent / "version").write_text(f"{version}\n")
    data = tmp_path / "served"
    data.mkdir()
    with serving(store, data, "--redis-url", redis_url) as client:
        command = [sys.executable, str(ROOT / "deploy" / "load.py"), "--url", str(client.base_url)]
        command += ["--data", str(log), "--only-version", str(log.parent / "version")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            assert any("the best of 100 videos" in line for line in process.stdout)
            store.promote(store.publish(tiny_draft(0.2)))

            assert process.wait(60) == 0
            assert json.loads(process.stdout.read().splitlines()[-1])["answered"] > 0


def test_the_load_can_be_ended_while_it_waits(log: Path) -> None:
    """Without a service the load waits for one, and ends when it is told to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, str(ROOT / "deploy" / "load.py"), "--url", address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--data", str(log)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.terminate()

        assert first == f"waiting for {address}\n"
        assert process.wait(20) == 0


def test_a_missing_log_ends_the_load(tmp_path: Path) -> None:
    """Without the log it was pointed at, the load ends with status 1 and names the file."""
    done = run("load.py", "--url", "http://127.0.0.1:1", "--data", str(tmp_path))

    assert done.returncode == 1
    assert "train_data.csv" in done.stderr
    assert "Traceback" not in done.stderr
