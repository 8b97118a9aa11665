"""An epoch of training: steps, what they cost, checkpoints between them, and an early end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.batches import Batch
from training.config import RunConfig
from training.errors import DivergedError, StoppedError
from training.interruption import StopRequest
from training.journal import Journal
from training.models import Network
from training.objective import loss_of
from training.processes import ALONE, Processes
from training.run_directory import Progress, RunDirectory
from training.shards import Shards

_LOWEST_SHARE = 0.01

Loss = Callable[[Network, Batch], Tensor]


def make_loss(config: RunConfig, device: torch.device) -> Loss:
    """Build the loss as the configuration wants it computed: in which precision, compiled or not."""
    optim = config.optim
    compute: Loss = partial(
        torch.compile(loss_of, dynamic=True) if config.execution.compile else loss_of,
        pairwise_share=optim.pairwise_share,
        reach=optim.rows_per_user,
    )
    if config.execution.precision == "float32":
        return compute

    def in_bfloat16(network: Network, batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return compute(network, batch)

    return in_bfloat16


def train_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    clip_norm: float,
    loss: Loss = loss_of,
) -> Tensor:
    """Move the weights once; the batch's mean loss before the move, without its history."""
    value = loss(network, batch)
    optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
    return value.detach()


class TrainingLoop:
    """The steps of a run.

    Args:
        config: how weights move.
        network: on the processes' device, its weights the same on all of them.
        optimizer: of its weights.
        shards: what this process learns from.
        run: where checkpoints go.
        processes: who takes part.
    """

    def __init__(
        self,
        config: RunConfig,
        network: Network,
        optimizer: torch.optim.Optimizer,
        shards: Shards,
        run: RunDirectory,
        processes: Processes = ALONE,
    ) -> None:
        self._config, self.network, self.optimizer = config, network, optimizer
        self._shards, self._run, self._processes = shards, run, processes
        self._loss = make_loss(config, processes.device)
        self._saved_at = time.monotonic()
        self._noted = (0, 0.0, 0.0)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._shards.steps

    def epoch(self, progress: Progress, journal: Journal, stop: StopRequest) -> None:
        """Do what is left of the epoch that ``progress`` stands in.

        Raises:
            StoppedError: somebody asked for an end; the run is saved where it stands.
            DivergedError: the loss is not finite.
        """
        self.network.train()
        epoch, steps = progress.epoch + 1, self._shards.steps
        shown = tqdm(
            desc=f"epoch {epoch}",
            total=steps,
            initial=progress.step,
            mininterval=2,
            leave=False,
            disable=None if self._processes.is_first else True,
        )
        batches = self._shards.batches(epoch, progress.step)
        begin = time.monotonic()
        self._noted = progress.rows, progress.loss_sum, begin
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64)
        loss_sum = loss_sum.to(self._processes.device)
        with shown:
            while True:
                self._schedule(epoch, progress.step / steps)
                rows, wants = self._step(next(batches, None), loss_sum, stop)
                if not rows:
                    break
                progress.step, progress.steps = progress.step + 1, progress.steps + 1
                progress.rows += rows
                shown.update()
                if progress.steps % self._config.execution.log_steps == 0 or any(wants):
                    self._take_loss(progress, loss_sum)
                    self._note(progress, journal)
                if any(wants):
                    progress.seconds += time.monotonic() - begin
                    begin = time.monotonic()
                    self._save(progress, is_end=wants[1], stop=stop)
        self._take_loss(progress, loss_sum)
        progress.seconds += time.monotonic() - begin

    def _take_loss(self, progress: Progress, loss_sum: Tensor) -> None:
        """Read the loss from its device: seldom, as that waits for it, and before all saving."""
        progress.loss_sum = float(loss_sum)
        if not math.isfinite(progress.loss_sum):
            found = f"the training loss is {progress.loss_sum}"
            raise DivergedError(progress.epoch + 1, found, self._config.optim.learning_rate)

    def _step(
        self, batch: Batch | None, loss_sum: Tensor, stop: StopRequest
    ) -> tuple[int, tuple[bool, bool]]:
        """Take one step: its impressions over all processes, and whether to save, and to end.

        No step is taken once a process has nothing left: the few impressions that others still
        have come another time, as every epoch is shuffled anew.
        """
        minutes = self._config.execution.checkpoint_minutes
        is_time = bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes
        wants_end = stop.signal_number is not None
        clip_norm = self._config.optim.clip_norm
        if self._processes.count == 1:
            if batch is None:
                return 0, (False, False)
            moved = batch.to(self._processes.device)
            value = train_step(
                self.network, self.optimizer, moved, clip_norm=clip_norm, loss=self._loss
            )
            loss_sum += value.double() * len(batch.labels)
            return len(batch.labels), (is_time, wants_end)
        self.optimizer.zero_grad()
        loss = 0.0
        if batch is not None:
            value = self._loss(self.network, batch.to(self._processes.device))
            value.backward()
            loss = float(value.detach())
        size = 0 if batch is None else len(batch.labels)
        # The first process's clock decides for all.
        is_time = is_time and self._processes.is_first
        ready, rows, total, end, save = self._processes.sum_gradients(
            self.network.parameters(),
            size,
            [float(size > 0), size, loss * size, wants_end, is_time],
        )
        if ready < self._processes.count:
            return 0, (False, False)
        nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.optimizer.step()
        loss_sum += total
        return int(rows), (save > 0, end > 0)

    def _schedule(self, epoch: int, share: float) -> None:
        optim = self._config.optim
        if optim.schedule != "linear":
            return
        done = (epoch - 1 + share) / optim.max_epochs
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate * max(_LOWEST_SHARE, 1 - done)

    def _note(self, progress: Progress, journal: Journal) -> None:
        rows, loss_sum, since = self._noted
        now = time.monotonic()
        if progress.rows > rows:
            journal.write(
                progress.steps,
                epoch=progress.epoch + 1,
                train_loss=(progress.loss_sum - loss_sum) / (progress.rows - rows),
                learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                examples_per_second=(progress.rows - rows) / max(1e-9, now - since),
            )
        self._noted = progress.rows, progress.loss_sum, now

    def _save(self, progress: Progress, *, is_end: bool, stop: StopRequest) -> None:
        self._run.save(self.network, self.optimizer, progress)
        self._saved_at = time.monotonic()
        place = progress.place(self._shards.steps)
        if self._processes.is_first:
            tqdm.write(f"saved {place}")
        if is_end:
            # Another process may have been asked, not this one.
            raise StoppedError(place, stop.signal_number or 0)
