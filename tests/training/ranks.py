"""What one of several processes does and reads; started by ``torchrun`` from test_processes.py."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from training.config import load_config
from training.fit import fit
from training.histories import ClickHistories
from training.impressions import Impressions
from training.interactions import ClickLog, load_click_log
from training.processes import join_processes


class Watched:
    """An array that remembers which of its rows were asked for; asking for all is remembered."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array, self.seen = array, np.zeros(len(array), bool)
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        self.seen[index] = True
        return self._array[index]

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        self.seen[:] = True
        return self._array


def watch(log: ClickLog) -> tuple[ClickLog, dict[str, Watched]]:
    """Put watches on everything that grows with the log."""
    log, index = log.indexed()
    columns = {name: Watched(getattr(log.train, name)) for name in Impressions.__slots__}
    clicks = {
        name: Watched(getattr(index.histories, name)) for name in ("item_ids", "timestamps_ms")
    }
    features = Watched(log.train_features)
    histories = ClickHistories(index.histories.users, index.histories.offsets, **clicks)
    watched = replace(
        log,
        train=Impressions(**columns),
        train_features=features,
        index=replace(index, histories=histories),
    )
    named = {f"clicks_{name}": column for name, column in clicks.items()}
    return watched, {**columns, **named, "features": features}


def main() -> None:
    """Train on the log of the first argument, and write what was read into the second."""
    data, out, config = map(Path, sys.argv[1:])
    with join_processes("cpu") as processes:
        log, watches = watch(load_click_log(data))
        fit(load_config("modern", overrides=config), log, out, processes)
        seen = {name: np.flatnonzero(watched.seen) for name, watched in watches.items()}
        rng = torch.Generator().manual_seed(processes.rank)
        layer = torch.nn.Linear(3, 1)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        inputs = torch.randn(4 + processes.rank, 3, generator=rng)
        layer(inputs).square().mean().backward()
        sums = processes.sum_gradients(layer.parameters(), len(inputs), [1.0, processes.rank])
        assert sums == [2.0, 1.0]
        torch.manual_seed(processes.rank)
        own = torch.nn.Linear(3, 2)
        processes.share(own.parameters())
        told = {"gradient": layer.weight.grad, "shared": own.weight.detach()}
        np.savez(out / f"rank-{processes.rank}.npz", **told, **seen)
        distributed.barrier()
    threads = []
    for path in Path("/proc/self/task").glob("*/comm"):
        # Others end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            threads.append(path.read_text().strip())
    (out / f"threads-{processes.rank}.txt").write_text("\n".join(threads))


if __name__ == "__main__":
    main()
