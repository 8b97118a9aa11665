"""The directory of a run: what it was told, how far it is, and what it has learnt."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.config import RunConfig, parse_config
from training.errors import ConfigError
from training.evaluate import build_network
from training.models import Network
from training.processes import Processes, random_states, set_random_state

_SIZES = ("feature_dim", "num_categories", "num_users")
"""Of the log, what a network is built for."""


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved with weights and optimiser.

    Attributes:
        epoch: the last finished one, from 1.
        best_epoch: the one whose weights are in best.pt.
        best_auc: its validation gAUC.
        bad_epochs: how far patience is used up.
        last_loss: training loss of the last finished epoch.
        done: nothing is left to do.
        history: one entry an epoch.
        step: steps done of the epoch that is not finished.
        steps: steps done in all.
        loss_sum: over the impressions of those ``step`` steps.
        rows: their impressions.
        seconds: spent on them.
        processes: how many shared them.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_auc: float = -1.0
    bad_epochs: int = 0
    last_loss: float = float("inf")
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    processes: int = 1

    def place(self, steps: int) -> str:
        """Say how far the run is, an epoch having so many steps."""
        if not self.step:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1}, after step {self.step:,} of {steps:,}"


class RunDirectory:
    """A run's config.json, checkpoint.pt, best.pt and metrics.jsonl.

    Args:
        out: made if missing.
        config: of the run.
        log: sizes of the log, and what tells it from others.
        processes: only the first one writes.

    Raises:
        ConfigError: the directory holds a run of another configuration or log.
    """

    def __init__(
        self, out: Path, config: RunConfig, *, log: dict[str, int], processes: Processes
    ) -> None:
        self.out, self._processes = out, processes
        path = out / "config.json"
        if path.exists():
            saved, saved_log = _read_config(path)
            # Runs of earlier versions were not told of their features.
            same_log = {"features": log["features"], **saved_log} == log
            if saved is None or not saved.learns_as(config) or not same_log:
                raise ConfigError(
                    f"{out} holds a run of another configuration or log: choose another --out"
                )
        if processes.is_first:
            out.mkdir(parents=True, exist_ok=True)
            resolved = {**config.model_dump(mode="json"), "log": log}
            text = json.dumps(resolved, indent=2) + "\n"
            if not path.exists() or path.read_text() != text:
                _write(path, text)

    def load(self, network: Network, optimizer: torch.optim.Optimizer) -> Progress:
        """Restore the last checkpoint, if there is one.

        Raises:
            ConfigError: it was written within an epoch by another number of processes.
        """
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return Progress(processes=self._processes.count)
        state = torch.load(path, weights_only=True, map_location="cpu")
        progress = Progress(**state["progress"])
        if progress.step and progress.processes != self._processes.count:
            raise ConfigError(
                f"{path} was written within an epoch by {progress.processes} process(es), "
                f"this is {self._processes.count}: finish the epoch with as many as before"
            )
        progress.processes = self._processes.count
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        states = state.get("random") or [state["rng"]]
        if len(states) == self._processes.count:
            set_random_state(self._processes, states[self._processes.rank])
        return progress

    def save(self, network: Network, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, whole."""
        states = random_states(self._processes)
        if not self._processes.is_first:
            return
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": states,
            "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        }
        _save(self.out / "checkpoint.pt", state)

    def save_epoch(
        self, network: Network, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Write a finished epoch's checkpoint, metrics and, if it is the best, weights."""
        if self._processes.is_first and progress.best_epoch == progress.epoch:
            weights = {name: value.cpu() for name, value in network.state_dict().items()}
            _save(self.out / "best.pt", weights)
        self.save(network, optimizer, progress)
        if self._processes.is_first:
            lines = "".join(json.dumps(entry) + "\n" for entry in progress.history)
            _write(self.out / "metrics.jsonl", lines)


def load_run(run: Path) -> tuple[RunConfig, Network]:
    """Open a run directory: its configuration and its best network, ready to score on the CPU.

    Raises:
        ConfigError: no finished epoch there.
    """
    try:
        config, log = _read_config(run / "config.json")
        state = torch.load(run / "best.pt", weights_only=True)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{run} holds no trained network ({exc.filename} is missing): "
            f"python -m training fit --out {run} --data DIR"
        ) from exc
    if config is None:
        raise ConfigError(f"{run / 'config.json'} is of another version of this software")
    network = build_network(config, **{name: log[name] for name in _SIZES})
    network.load_state_dict(state)
    return config, network.eval()


def _read_config(path: Path) -> tuple[RunConfig | None, dict[str, int]]:
    """Configuration, or nothing where its keys are not ours, and what the log was."""
    resolved: dict[str, Any] = json.loads(path.read_text())
    log: dict[str, int] = resolved.pop("log", {})
    try:
        return parse_config(resolved, source=str(path)), log
    except ConfigError:
        return None, log


def _save(path: Path, state: object) -> None:
    staged = path.with_suffix(".tmp")
    torch.save(state, staged)
    _replace(staged, path)


def _write(path: Path, text: str) -> None:
    staged = path.with_suffix(".tmp")
    staged.write_text(text)
    _replace(staged, path)


def _replace(staged: Path, path: Path) -> None:
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(path)
