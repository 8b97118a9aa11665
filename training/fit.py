"""The training loop: shuffled batches, early stopping on validation, resume after interruption."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from training.batches import Batch
from training.config import RunConfig, parse_config
from training.errors import ConfigError, DataError
from training.evaluate import build_network, measure, score, train_examples
from training.examples import Examples
from training.interactions import ClickLog, Impressions
from training.models import Network, PersonalNetwork
from training.models.thacil import Thacil
from training.objective import epoch_batches, loss_of

_PLATEAU = 0.005
_LOWEST_SHARE = 0.01


@dataclass(slots=True)
class Progress:
    """Where a run stands after an epoch; saved with weights and optimiser."""

    epoch: int = 0
    best_epoch: int = 0
    best_auc: float = -1.0
    bad_epochs: int = 0
    last_loss: float = float("inf")
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def split_validation(
    config: RunConfig, impressions: Impressions
) -> tuple[Impressions, Impressions]:
    """Split a training log into what is learnt from and what validates.

    Validation is on videos that are never trained on, in the last part of the log's time: the
    question that the model is asked once it serves. Neither half knows of the test file.
    """
    rng = np.random.default_rng(config.seed)
    items = np.unique(impressions.item_ids)
    held = rng.permutation(items)[: int(len(items) * config.data.validation_item_share)]
    is_held = np.isin(impressions.item_ids, held)
    late = np.quantile(impressions.timestamps_ms, 1 - config.data.validation_time_share)
    validates = is_held & (impressions.timestamps_ms >= late)
    return impressions.take(np.flatnonzero(~is_held)), impressions.take(np.flatnonzero(validates))


class Run:
    """A run directory: config.json, metrics.jsonl, checkpoint.pt, best.pt.

    Raises:
        ConfigError: the directory holds a run of another configuration.
    """

    def __init__(self, out: Path, config: RunConfig, *, sizes: dict[str, int]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        resolved = {**config.model_dump(mode="json"), "sizes": sizes}
        path = out / "config.json"
        if path.exists() and json.loads(path.read_text()) != resolved:
            raise ConfigError(
                f"{out} holds a run of another configuration or log: choose another --out"
            )
        path.write_text(json.dumps(resolved, indent=2) + "\n")

    def load(self, network: Network, optimizer: torch.optim.Optimizer) -> Progress:
        """Restore the last epoch's state, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return Progress()
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        return Progress(**state["progress"])

    def save(self, network: Network, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write an epoch's state; a reader sees the old one or the new one, whole."""
        names = Progress.__slots__
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "progress": {name: getattr(progress, name) for name in names},
        }
        if progress.best_epoch == progress.epoch:
            _save(self.out / "best.pt", network.state_dict())
        _save(self.out / "checkpoint.pt", state)
        lines = "".join(json.dumps(entry) + "\n" for entry in progress.history)
        (self.out / "metrics.jsonl").write_text(lines)


def fit(config: RunConfig, log: ClickLog, out: Path) -> Progress:
    """Train a network on a log; an interrupted run in ``out`` goes on where its last epoch ended.

    Args:
        config: what to do.
        log: its test half is never looked at.
        out: the run directory, made if missing.

    Raises:
        ConfigError: ``out`` holds another run.
        DataError: the log has no click to learn from, or none to validate on.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    learns, validates = split_validation(config, log.train)
    for name, part in (("training", learns), ("validation", validates)):
        if not 0 < part.labels.sum() < len(part):
            raise DataError(f"the {name} split of {len(part)} rows lacks clicks or non-clicks")
    users = np.unique(log.train.user_ids)
    sizes = {
        "feature_dim": log.feature_dim,
        "num_categories": log.num_categories,
        "num_users": len(users),
    }
    network = build_network(config, **sizes)
    _initialise(network, config.network.init)
    if isinstance(network, PersonalNetwork):
        network.users.assign(torch.from_numpy(users))
    optimizer = make_optimizer(network, config)
    run = Run(out, config, sizes={**sizes, "train_rows": len(log.train)})
    progress = run.load(network, optimizer)
    examples = tuple(train_examples(config, log, part) for part in (learns, validates))
    while not progress.done:
        _epoch(config, network, optimizer, examples, progress)
        run.save(network, optimizer, progress)
    return progress


def load_run(run: Path) -> tuple[RunConfig, Network]:
    """Open a run directory: its configuration and its best network, ready to score.

    Raises:
        ConfigError: no finished epoch there.
    """
    try:
        resolved = json.loads((run / "config.json").read_text())
        state = torch.load(run / "best.pt", weights_only=True)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{run} holds no trained network ({exc.filename} is missing): "
            f"python -m training fit --out {run} --data DIR"
        ) from exc
    sizes = resolved.pop("sizes")
    config = parse_config(resolved, source=str(run / "config.json"))
    sizes.pop("train_rows")
    network = build_network(config, **sizes)
    network.load_state_dict(state)
    return config, network.eval()


def _epoch(
    config: RunConfig,
    network: Network,
    optimizer: torch.optim.Optimizer,
    examples: tuple[Examples, ...],
    progress: Progress,
) -> None:
    learns, validates = examples
    progress.epoch += 1
    loss = _train(config, network, optimizer, learns, progress.epoch)
    measured = measure(validates.impressions, score(network, validates))
    entry = {"epoch": progress.epoch, "train_loss": loss, "learning_rate": _rate(optimizer)}
    entry |= {f"validation_{name}": value for name, value in measured.items()}
    progress.history.append(entry)
    if measured["gauc"] > progress.best_auc:
        progress.best_auc, progress.best_epoch = measured["gauc"], progress.epoch
    _decide(config, optimizer, progress, loss)
    tqdm.write(
        f"epoch {progress.epoch}: loss {loss:.4f}, validation user AUC "
        f"{measured['user_auc']:.4f}, gAUC {measured['gauc']:.4f}, "
        f"log loss {measured['log_loss']:.4f}"
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


def _train(
    config: RunConfig,
    network: Network,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    epoch: int,
) -> float:
    optim = config.optim
    # A generator of its own for each epoch: a resumed run draws what an unbroken one would.
    rng = np.random.default_rng([config.seed, epoch])
    network.train()
    total, rows = 0.0, 0
    steps = examples.steps(optim.batch_size)
    batches = epoch_batches(config, examples, rng)
    shown = tqdm(batches, desc=f"epoch {epoch}", total=steps, mininterval=2, leave=False)
    for step, batch in enumerate(shown):
        if optim.schedule == "linear":
            done = (epoch - 1 + step / steps) / optim.max_epochs
            for group in optimizer.param_groups:
                group["lr"] = optim.learning_rate * max(_LOWEST_SHARE, 1 - done)
        loss = train_step(network, optimizer, batch, clip_norm=optim.clip_norm)
        total, rows = total + loss * len(batch.labels), rows + len(batch.labels)
    return total / rows


def train_step(
    network: Network, optimizer: torch.optim.Optimizer, batch: Batch, *, clip_norm: float
) -> float:
    """Move the weights once; the batch's mean loss before the move."""
    loss = loss_of(network, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


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


def _initialise(network: Network, how: str) -> None:
    for name, parameter in network.named_parameters():
        # Recurrent kernels hold four gates: PyTorch's own start knows their fan-in.
        if parameter.dim() > 1 and "embedding" not in name and "lstm" not in name:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") and "norm" not in name:
            nn.init.zeros_(parameter)
    if how == "reference" and isinstance(network, Thacil):
        for vector in (network.norm.weight, network.norm.bias, network.self_attention.bias):
            bound = (3.0 / len(vector)) ** 0.5
            nn.init.uniform_(vector, -bound, bound)
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            if how == "plain" or "category" not in name:
                # N(0, 1), PyTorch's default, would drown the projected features at the start.
                nn.init.normal_(module.weight, std=0.1)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def _save(path: Path, state: object) -> None:
    staged = path.with_suffix(".tmp")
    torch.save(state, staged)
    staged.replace(path)
