"""Training a network on a log: epochs, early stopping on validation, resume after interruption."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model_store import FloatArray
from training.config import RunConfig
from training.errors import DivergedError, StoppedError
from training.evaluate import build_network, score, validation_examples
from training.examples import Examples
from training.initial_weights import initialise
from training.interactions import ClickLog
from training.interruption import stop_request
from training.journal import Journal
from training.loop import TrainingLoop
from training.metrics import evaluate_scores
from training.models import Network, PersonalNetwork
from training.processes import ALONE, Processes
from training.run_directory import Progress, RunDirectory, load_run
from training.shards import Shards
from training.sufficiency import check_sufficient

__all__ = ["fit", "load_run", "make_optimizer"]

_PLATEAU = 0.005


def fit(config: RunConfig, log: ClickLog, out: Path, processes: Processes = ALONE) -> Progress:
    """Train a network on a log; an interrupted run in ``out`` goes on where it was saved last.

    Args:
        config: what to do.
        log: its test half is never looked at.
        out: the run directory, made if missing.
        processes: who trains together; each calls this with the same arguments.

    Raises:
        ConfigError: ``out`` holds another run.
        DataError: the log holds too little to learn from, or to validate on.
        DivergedError: the loss or the scores are not finite.
        StoppedError: SIGINT or SIGTERM came; the run is saved where it stands.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    log, index = log.indexed()
    shards = Shards(config, log, processes)
    check_sufficient(config, shards, processes)
    sizes = {
        "feature_dim": log.feature_dim,
        "num_categories": log.num_categories,
        "num_users": len(index.users),
    }
    network = build_network(config, **sizes)
    initialise(network, config.network.init, log.train_features, shards.videos())
    if isinstance(network, PersonalNetwork):
        network.users.assign(torch.from_numpy(index.users))
    network.to(processes.device)
    # Each process found directions among its own users' videos.
    processes.share(network.parameters())
    if processes.rank:
        # The same weights as the others, other dropout.
        torch.manual_seed(config.seed + processes.rank)
    optimizer = make_optimizer(network, config)
    told = {
        **sizes,
        "train_rows": len(log.train),
        "digest": shards.digest(),
        "features": shards.feature_digest(),
    }
    run = RunDirectory(out, config, log=told, processes=processes)
    progress = run.load(network, optimizer)
    loop = TrainingLoop(config, network, optimizer, shards, run, processes)
    if not progress.done:
        validates = validation_examples(config, log, shards.validates, shards.split.held)
        _learn(loop, run, progress, validates, config, processes)
    return progress


def _learn(
    loop: TrainingLoop,
    run: RunDirectory,
    progress: Progress,
    validates: Examples,
    config: RunConfig,
    processes: Processes,
) -> None:
    """Do epochs until the run is done, or somebody asks for an end."""
    journal = Journal(
        run.out,
        first_step=progress.steps,
        tensorboard=config.execution.tensorboard,
        speaks=processes.is_first,
    )
    with closing(journal), stop_request(patient=processes.count > 1) as stop:
        is_done = False
        while not is_done:
            loop.epoch(progress, journal, stop)
            measured = _validate(loop.network, validates, processes, config, progress.epoch + 1)
            is_done = _finish_epoch(config, loop.optimizer, progress, measured)
            run.save_epoch(loop.network, loop.optimizer, progress)
            if processes.is_first:
                _tell(progress, journal)
            (asked,) = processes.sum(stop.signal_number is not None)
            if asked and not is_done:
                raise StoppedError(progress.place(loop.steps), stop.signal_number or 0)


def _validate(
    network: Network, examples: Examples, processes: Processes, config: RunConfig, epoch: int
) -> dict[str, float]:
    """Measure an epoch on all processes' validation rows; each scores its own users."""
    rows = examples.impressions
    logits = score(network, examples) if len(rows) else np.zeros(0, np.float32)
    columns: list[FloatArray] = [
        np.concatenate(processes.gather(column)) for column in (rows.labels, logits)
    ]
    if bad := int(np.count_nonzero(~np.isfinite(columns[1]))):
        found = f"{bad:,} of {len(columns[1]):,} validation logits are not finite"
        raise DivergedError(epoch, found, config.optim.learning_rate)
    users = np.concatenate(processes.gather(rows.user_ids))
    return evaluate_scores(users, *columns)


def _finish_epoch(
    config: RunConfig,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    measured: dict[str, float],
) -> bool:
    """Enter an epoch into the history and decide whether it was the last."""
    loss = progress.loss_sum / progress.rows
    progress.epoch += 1
    entry = {
        "epoch": progress.epoch,
        "train_loss": loss,
        "learning_rate": _rate(optimizer),
        "train_rows": progress.rows,
        "train_seconds": progress.seconds,
    }
    entry |= {f"validation_{name}": value for name, value in measured.items()}
    progress.history.append(entry)
    progress.step = progress.rows = 0
    progress.loss_sum = progress.seconds = 0.0
    if measured["gauc"] > progress.best_auc:
        progress.best_auc, progress.best_epoch = measured["gauc"], progress.epoch
    _decide(config, optimizer, progress, loss)
    return progress.done


def _tell(progress: Progress, journal: Journal) -> None:
    entry = progress.history[-1]
    journal.write_epoch(progress.steps, entry)
    tqdm.write(
        f"epoch {progress.epoch}: loss {entry['train_loss']:.4f}, validation user AUC "
        f"{entry['validation_user_auc']:.4f}, gAUC {entry['validation_gauc']:.4f}, "
        f"log loss {entry['validation_log_loss']:.4f}; "
        f"{entry['train_rows'] / max(1e-9, entry['train_seconds']):,.0f} examples/s"
    )


def _decide(
    config: RunConfig, optimizer: torch.optim.Optimizer, progress: Progress, loss: float
) -> None:
    """Say whether the run is done, and halve the rate if that is the schedule."""
    optim = config.optim
    if optim.schedule == "halve_on_plateau":
        # The reference counts epochs of little gain, and a good one takes one back.
        stalled = progress.last_loss - loss < _PLATEAU
        progress.bad_epochs = max(0, progress.bad_epochs + (1 if stalled else -1))
        if stalled:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
    else:
        progress.bad_epochs = progress.epoch - progress.best_epoch
    progress.last_loss = loss
    progress.done = progress.epoch >= optim.max_epochs or progress.bad_epochs > optim.patience


def make_optimizer(network: Network, config: RunConfig) -> torch.optim.Optimizer:
    """Group the weights by their decay: AdamW's decoupled one, or the reference's L2 in Adam."""
    optim = config.optim
    if not optim.coupled:
        kernels = [p for p in network.parameters() if p.dim() > 1]
        vectors = [p for p in network.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
        )
    decay = optim.weight_decay
    item: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        kernels = item if name.endswith("item_projection.weight") else rest
        (kernels if parameter.dim() > 1 else free).append(parameter)
    # The reference lists the item projection twice in its penalty.
    return torch.optim.Adam(
        [
            {"params": item, "weight_decay": 2 * decay},
            {"params": rest, "weight_decay": decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=optim.learning_rate,
        fused=True,
    )


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
