"""A run that was cut short goes on where it was saved, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.fit import fit
from training.interactions import ClickLog, load_click_log
from training.run_directory import RunDirectory
from training.synthetic import synthesize

TINY = """
threads = 1
[network]
item_dim = 8
category_dim = 8
num_heads = 2
num_blocks = 4
block_size = 5
hidden_dim = 16
[data]
validation_item_share = 0.2
[optim]
batch_size = 64
max_epochs = 3
patience = 5
"""
OFTEN = "[execution]\ncheckpoint_minutes = 1e-9\n"

ONE = [sys.executable, "-m", "training"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=60, videos=400, interactions=6000, seed=1, categories=8, feature_dim=12)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


def _config(directory: Path, text: str, preset: str = "modern", **top: str) -> RunConfig:
    path = directory / "run.toml"
    path.write_text(text)
    return load_config(preset, overrides=path, top=dict(top))


def _final(run: Path) -> dict[str, torch.Tensor]:
    """Weights and everything else of the last checkpoint, and the best weights, by name."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    flat = {f"network.{name}": value for name, value in state["network"].items()}
    for number, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    flat |= {f"random.{rank}": value for rank, value in enumerate(state["random"])}
    best = torch.load(run / "best.pt", weights_only=True)
    return flat | {f"best.{name}": value for name, value in best.items()}


def _assert_same(run: Path, expected: Path) -> None:
    found, wanted = _final(run), _final(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    epochs = [_lines(where / "metrics.jsonl") for where in (run, expected)]
    for entry in (*epochs[0], *epochs[1]):
        del entry["train_seconds"]
    assert epochs[0] == epochs[1]
    # No step is told twice.
    steps = [entry["step"] for entry in _lines(run / "steps.jsonl")]
    assert steps == sorted(set(steps))


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("preset", "model", "more"),
    [
        ("modern", "thacil", ""),
        ("paper", "thacil", ""),
        ("modern", "bpr", ""),
        ("modern", "lstm", ""),
        ("modern", "mean_pooling", "shard_rows = 900\n"),
    ],
)
@pytest.mark.parametrize("saves", [1, 30, 70])
def test_any_checkpoint_leads_to_the_same_end(
    log: ClickLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    model: str,
    more: str,
    saves: int,
) -> None:
    """Cut after its n-th checkpoint and resumed, a run equals one that was never cut, to the bit:
    weights, optimiser, randomness and losses, with dropout, drawn negatives, pairs and shards.
    """
    text = TINY.replace("[optim]", f"{more}[optim]").replace("max_epochs = 3", "max_epochs = 2")
    whole = _config(tmp_path, text, preset, model=model)
    fit(whole, log, tmp_path / "whole")
    often = _config(tmp_path, text + OFTEN, preset, model=model)
    left = [saves]

    def cut(save: Callable[..., None], run: RunDirectory, *arguments: object) -> None:
        save(run, *arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    save = RunDirectory.save
    monkeypatch.setattr(RunDirectory, "save", lambda *arguments: cut(save, *arguments))
    with pytest.raises(KeyboardInterrupt):
        fit(often, log, tmp_path / "cut")
    fit(often, log, tmp_path / "cut")

    _assert_same(tmp_path / "cut", tmp_path / "whole")


def _start(launcher: list[str], world: Path, run: Path, config: Path) -> subprocess.Popen[str]:
    module = [] if launcher is ONE else ["-m", "training"]
    arguments = ["fit", "--data", str(world), "--config", str(config), "--out", str(run)]
    return subprocess.Popen(
        [*launcher, *module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def _wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    process.wait()
    assert process.stderr is not None
    pytest.fail(f"the run ended without {text!r}: {process.stderr.read()[-2000:]}")


def _finish(launcher: list[str], world: Path, run: Path, config: Path) -> str:
    process = _start(launcher, world, run, config)
    out, err = process.communicate(timeout=100)
    # What a worker says at its end stands before the launcher's long account of it.
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of the same run: one that saves after every step, one at ends of epochs."""
    directory = tmp_path_factory.mktemp("settings")
    often, seldom = directory / "often.toml", directory / "seldom.toml"
    often.write_text(TINY + OFTEN)
    seldom.write_text(TINY)
    return often, seldom


def _kill(process: subprocess.Popen[str]) -> None:
    """End a run and what it started, as a power cut would."""
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, started)):
        os.kill(pid, signal.SIGKILL)
    # The pipes end when the last of them is gone.
    process.communicate(timeout=60)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", [ONE, TWO], ids=["one process", "two processes"])
def test_a_killed_run_ends_with_the_same_weights(
    log: ClickLog, world: Path, tmp_path: Path, settings: tuple[Path, Path], launcher: list[str]
) -> None:
    """SIGKILL in the middle of the second epoch; the same command then ends as an unbroken run.

    A position within an epoch means something to as many processes only: others are refused.
    """
    often, seldom = settings
    _finish(launcher, world, tmp_path / "whole", seldom)
    process = _start(launcher, world, tmp_path / "killed", often)
    _wait_for(process, "in epoch 2, after step 7 ")
    _kill(process)
    saved = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["progress"]
    assert (saved["epoch"], saved["done"]) == (1, False)
    if launcher is TWO:
        with pytest.raises(ConfigError, match=r"by 2 process\(es\), this is 1"):
            fit(load_config("modern", overrides=often), log, tmp_path / "killed")

    _finish(launcher, world, tmp_path / "killed", often)

    _assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(
    world: Path, tmp_path: Path, settings: tuple[Path, Path], number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM: the step is finished, the run saved, the command told; it then goes on."""
    often, seldom = settings
    _finish(ONE, world, tmp_path / "whole", seldom)
    process = _start(ONE, world, tmp_path / "run", often)
    _wait_for(process, "in epoch 1, after step 3 ")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert "stopped and saved in epoch 1, after step" in err
    command = err.strip().splitlines()[-1].strip()
    expected = f"--data {world} --config {often} --out {tmp_path / 'run'}"
    assert command == f"python -m training fit {expected}"
    _finish(ONE, world, tmp_path / "run", often)
    _assert_same(tmp_path / "run", tmp_path / "whole")


def test_where_a_run_computes_may_change(log: ClickLog, tmp_path: Path) -> None:
    """Another checkpoint interval, log interval or thread count goes on; another precision not."""
    fit(_config(tmp_path, TINY), log, tmp_path / "run")
    other = TINY.replace("threads = 1", "threads = 2") + OFTEN + "log_steps = 3\n"
    fit(_config(tmp_path, other), log, tmp_path / "run")

    with pytest.raises(ConfigError, match="another configuration"):
        fit(
            _config(tmp_path, TINY + '[execution]\nprecision = "bfloat16"\n'),
            log,
            tmp_path / "run",
        )
