"""What a run says of itself while it learns: ``steps.jsonl``, and TensorBoard if wanted."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from training.errors import ConfigError


class Journal:
    """Lines of numbers by step.

    Args:
        out: the run directory.
        first_step: what an interrupted run wrote of later steps is taken back.
        tensorboard: also write events into ``out/tensorboard``.
        speaks: if not, nothing is written.

    Raises:
        ConfigError: TensorBoard is wanted and not installed.
    """

    def __init__(self, out: Path, *, first_step: int, tensorboard: bool, speaks: bool) -> None:
        self._path, self._speaks, self._events = out / "steps.jsonl", speaks, None
        if tensorboard:
            # Asked for on all processes, so that all refuse together.
            writer = _writer_class()
            self._events = writer(out / "tensorboard", purge_step=first_step) if speaks else None
        if speaks:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= first_step]
            self._path.write_text("".join(kept))

    def write(self, step: int, **numbers: float) -> None:
        """Add one line; ``step`` counts over all epochs."""
        if not self._speaks:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            if self._events is not None:
                self._events.add_scalar(name, value, step)

    def write_epoch(self, step: int, entry: dict[str, float]) -> None:
        """Add an epoch's metrics to the events; metrics.jsonl holds them already."""
        for name, value in entry.items():
            if self._events is not None:
                self._events.add_scalar(f"epoch/{name}", value, step)

    def close(self) -> None:
        """Write out what waits."""
        if self._events is not None:
            self._events.close()

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        # A killed process may have left half a line.
        return [x for x in self._path.read_text().splitlines(keepends=True) if x.endswith("\n")]


def _writer_class() -> Any:
    try:
        return import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as exc:
        raise ConfigError(
            "execution.tensorboard is true, and TensorBoard is not installed: "
            "pip install 'thacil-ctr[tensorboard]'"
        ) from exc
