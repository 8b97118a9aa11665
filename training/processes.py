"""The processes that train together: one, or those that ``torchrun`` started.

Hides torch.distributed. Weights are equal everywhere: they start so, and every step moves them by
the gradient of all processes' impressions.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from training.errors import ConfigError

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: of this one, from 0.
        count: how many.
        device: what this one computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run directory and speaks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sum numbers over the processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def lowest(self, value: int) -> int:
        """Return the lowest of the processes' numbers."""
        if self.count == 1:
            return value
        found = torch.tensor(value, device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
        return int(found)

    def gather(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Every process's array, by rank; lengths may differ."""
        if self.count == 1:
            return [array]
        found: list[npt.NDArray[Any]] = [array] * self.count
        distributed.all_gather_object(found, np.ascontiguousarray(array))
        return found

    def share(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all processes the first one's numbers."""
        if self.count == 1:
            return
        for parameter in parameters:
            distributed.broadcast(parameter.detach(), src=0)

    def sum_gradients(
        self, parameters: Iterable[nn.Parameter], weight: float, notes: list[float]
    ) -> list[float]:
        """Make every gradient the weighted mean over processes, in one exchange.

        Args:
            parameters: the same on all processes; a missing gradient counts as zeros.
            weight: of this process's gradient, its impressions; with 0 everywhere all stay zero.
            notes: numbers that are summed over the processes on the way.

        Returns:
            The sums of the notes.
        """
        learnt = list(parameters)
        flat = [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) * weight for p in learnt
        ]
        sent = torch.cat([*flat, torch.tensor([weight, *notes], device=self.device)])
        distributed.all_reduce(sent)
        total, *sums = sent[-1 - len(notes) :].tolist()
        begin = 0
        for parameter in learnt:
            part = sent[begin : begin + parameter.numel()].view_as(parameter)
            parameter.grad = part / max(total, 1.0)
            begin += parameter.numel()
        return sums


ALONE = Processes()
"""One process on the CPU."""


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """Choose the device that a configuration names.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError('execution.device is "cuda", and torch sees no CUDA device: take "auto"')
    return torch.device("cuda", local_rank) if has_cuda and name != "cpu" else torch.device("cpu")


def scoring_device(name: str) -> torch.device:
    """Choose a device for weights that may have been trained on another machine."""
    return device_of("cpu" if name == "cpu" else "auto")


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Take part in what ``torchrun`` started; one process where it started nothing.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = device_of(device, int(os.environ.get("LOCAL_RANK", "0")))
    if count == 1:
        yield Processes(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Its functions' defaults are the group that exists when it is imported, by the first optimiser
    # at the latest. They would keep the group's threads past its end, and a thread that meets the
    # interpreter's end aborts the process: import it while there is no group.
    importlib.import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), count, chosen)
    finally:
        distributed.destroy_process_group()


def random_states(processes: Processes) -> list[Tensor]:
    """Every process's state of torch's randomness, by rank."""
    on_cuda = processes.device.type == "cuda"
    state = torch.cuda.get_rng_state(processes.device) if on_cuda else torch.get_rng_state()
    return [torch.from_numpy(each) for each in processes.gather(state.numpy())]


def set_random_state(processes: Processes, state: Tensor) -> None:
    """Put this process's randomness back to a state that :func:`random_states` told."""
    if processes.device.type == "cuda":
        torch.cuda.set_rng_state(state, processes.device)
    else:
        torch.set_rng_state(state)
