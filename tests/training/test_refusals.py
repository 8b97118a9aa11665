"""What goes wrong in use is told in one line, with the way out, and spoils nothing."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from training import __main__ as command
from training.__main__ import main
from training.config import RunConfig, parse_config
from training.errors import DivergedError, StoppedError
from training.fit import fit
from training.interactions import ClickLog, load_click_log
from training.journal import Journal
from training.run_directory import Progress, RunDirectory
from training.synthetic import synthesize


def _synthesize(out: Path, feature_dim: int) -> Path:
    sizes = {"users": 40, "videos": 300, "interactions": 3000, "categories": 4}
    synthesize(out, **sizes, seed=1, feature_dim=feature_dim)
    return out


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    return load_click_log(_synthesize(tmp_path_factory.mktemp("world"), 6))


def _config(**optim: float) -> RunConfig:
    network = {"item_dim": 4, "category_dim": 4, "num_heads": 2, "num_blocks": 2, "block_size": 3}
    values = {
        "preset": "modern",
        "threads": 1,
        "network": {**network, "hidden_dim": 4},
        "data": {"validation_item_share": 0.2},
        "optim": {"batch_size": 64, "max_epochs": 2},
        "execution": {"log_steps": 5},
    }
    config = parse_config(values, source="test")
    # A rate that no file may ask for, to see what one does that is too high for a log.
    return config.model_copy(update={"optim": config.optim.model_copy(update=optim)})


def test_features_of_another_width_are_refused(
    log: ClickLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever scores a log with a run says which widths do not fit."""
    run, other = tmp_path / "run", _synthesize(tmp_path / "other", 9)
    fit(_config(), log, run)
    given = ["--run", str(run), "--data", str(other)]

    for verb in (
        ["evaluate", *given],
        ["calibrate", *given],
        ["export", *given, "--store", str(tmp_path / "store"), "--precision", "float16"],
    ):
        assert main(verb) == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, verb
        assert "features 6 wide" in said[0]
        assert "9 wide" in said[0]


def test_a_negative_seed_makes_no_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused like sizes that are too small."""
    assert main(["synthesize", "--seed", "-1", "--out", str(tmp_path / "log")]) == 1

    assert "seed is -1, at least 0" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("world", "local", "launcher"),
    [
        ("1", "1", "python -m"),
        ("4", "4", "torchrun --nproc-per-node 4 -m"),
        ("8", "4", "torchrun --nnodes 2 --nproc-per-node 4 -m"),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_began(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    world: str,
    local: str,
    launcher: str,
) -> None:
    """As many processes as before: a position within an epoch means something to those only."""

    def stop(_: object) -> None:
        place = "in epoch 1"
        raise StoppedError(place, signal.SIGTERM)

    monkeypatch.setitem(command._VERBS, "fit", stop)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)

    assert main(["fit", "--data", "a log", "--out", "run"]) == 128 + signal.SIGTERM

    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"  {launcher} training fit --data 'a log' --out run"


@pytest.mark.parametrize(
    ("batch_size", "what"), [(64, "the training loss is nan"), (1 << 20, "logits are not finite")]
)
def test_a_run_that_diverges_says_so(
    log: ClickLog, tmp_path: Path, batch_size: int, what: str
) -> None:
    """In its steps, or after its only step, when validation is scored."""
    config = _config(learning_rate=1e30, batch_size=batch_size)

    with pytest.raises(DivergedError, match=rf"epoch 1 .*{what}.*optim\.learning_rate.* 1e\+30"):
        fit(config, log, tmp_path)

    assert not (tmp_path / "best.pt").exists()
    assert "NaN" not in (tmp_path / "steps.jsonl").read_text()


def test_an_epoch_that_diverges_spoils_nothing(
    log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and checkpoint of the epoch before stay, though it was time to save."""
    config = _config()
    often = config.execution.model_copy(update={"checkpoint_minutes": 1e-9})
    save_epoch, saved = RunDirectory.save_epoch, {}

    def spoil(
        run: RunDirectory,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
    ) -> None:
        save_epoch(run, network, optimizer, progress)
        saved.update({path: path.read_bytes() for path in tmp_path.glob("*.pt")})
        with torch.no_grad():
            next(network.parameters()).fill_(math.inf)

    monkeypatch.setattr(RunDirectory, "save_epoch", spoil)
    with pytest.raises(DivergedError, match="epoch 2 "):
        fit(config.model_copy(update={"execution": often}), log, tmp_path)

    assert {path.name for path in saved} == {"best.pt", "checkpoint.pt"}
    assert {path: path.read_bytes() for path in saved} == saved


def test_what_waits_is_written_out_when_a_run_is_stopped(
    log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is closed, however the run ends."""
    closed = []
    monkeypatch.setattr(Journal, "close", lambda _: closed.append(True))
    save_epoch = RunDirectory.save_epoch

    def save_and_signal(*arguments: Any) -> None:
        save_epoch(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "save_epoch", save_and_signal)

    with pytest.raises(StoppedError):
        fit(_config(), log, tmp_path)

    assert closed == [True]
