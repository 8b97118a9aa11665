"""Training examples and evaluated pairs a second, beside a straight per-row implementation.

``make bench-training`` writes ``benchmarks/results/training.json``. The log has the shape of
MicroVideo-1.7M: 816 training and 343 test impressions a user, a fifth clicked, 512 features; every
impression sees a full history of 160 clicks. Both sides are timed in turns (A B A B), first
training, then scoring; a figure is the median over the rounds, a ratio the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.per_row import PerRowDataset, PerRowThacil
from training.config import RunConfig, load_config
from training.evaluate import build_network, score, test_examples, train_examples
from training.fit import make_optimizer
from training.interactions import ClickLog, Features, Impressions
from training.loop import make_loss, train_step
from training.models import Network
from training.objective import plan_epoch

CATEGORIES, FEATURES, CLICKS, BATCH = 512, 512, 160, 128
TRAIN_ROWS, TEST_ROWS, CLICK_SHARE = 816, 343, 0.2
RESULTS = Path(__file__).parent / "results" / "training.json"


@dataclass(frozen=True, slots=True)
class World:
    """A log whose impressions ``learns`` and ``test`` all see a full history."""

    log: ClickLog
    learns: Impressions
    test: Impressions
    test_features: Features


def make_world(users: int, videos: int, rng: np.random.Generator) -> World:
    """Give each user 160 clicks, then the impressions that are learnt from, then the test ones."""
    counts = (CLICKS, TRAIN_ROWS, TEST_ROWS)
    parts = []
    for part, (count, first) in enumerate(
        zip(counts, (0, CLICKS, CLICKS + TRAIN_ROWS), strict=True)
    ):
        total = users * count
        items = rng.integers(0, videos, total)
        labels = np.ones(total) if part == 0 else rng.random(total) < CLICK_SHARE
        parts.append(
            Impressions(
                np.repeat(np.arange(users), count),
                items,
                items % CATEGORIES,
                labels.astype(np.float32),
                np.tile(1000 * (first + np.arange(count)), users),
            )
        )
    warmup, learns, test = parts
    columns = ("user_ids", "item_ids", "categories", "labels", "timestamps_ms")
    train = Impressions(
        *(np.concatenate([getattr(warmup, name), getattr(learns, name)]) for name in columns)
    )
    features = [
        # As the columnar cache keeps them.
        (rng.standard_normal((videos, FEATURES), np.float32) * 0.05).astype(np.float16)
        for _ in range(2)
    ]
    log = ClickLog(train, features[0], test, features[1], CATEGORIES)
    return World(log, learns, test, features[1])


def train_per_row(world: World, network: PerRowThacil) -> Iterator[int]:
    """Train as one would first write it; rows of each step."""
    dataset = per_row(world, world.learns, world.log.train_features)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for *inputs, labels in DataLoader(dataset, batch_size=BATCH, shuffle=True):
        loss = nn.functional.binary_cross_entropy_with_logits(network(*inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        yield len(labels)


def score_per_row(world: World, network: PerRowThacil) -> Iterator[int]:
    """Score the test impressions one padded history each; rows of each batch."""
    dataset = per_row(world, world.test, world.test_features)
    network.eval()
    with torch.inference_mode():
        for *inputs, labels in DataLoader(dataset, batch_size=BATCH):
            network(*inputs)
            yield len(labels)


def per_row(world: World, impressions: Impressions, features: Features) -> PerRowDataset:
    """Put the per-row view over the same log."""
    return PerRowDataset(
        impressions,
        world.log.train,
        features=features,
        click_features=world.log.train_features,
        categories=CATEGORIES,
        length=CLICKS,
    )


def train_ours(world: World, config: RunConfig, network: Network) -> Iterator[int]:
    """Train as ``fit`` does; rows of each step."""
    examples = train_examples(config, world.log, world.learns)
    optimizer = make_optimizer(network, config)
    network.train()
    plan = plan_epoch(config, examples, np.random.default_rng(0), config.optim.batch_size)
    loss = make_loss(config, torch.device("cpu"))
    for batch in plan.batches():
        train_step(network, optimizer, batch, clip_norm=config.optim.clip_norm, loss=loss)
        yield len(batch.labels)


def score_ours(world: World, config: RunConfig, network: Network) -> Iterator[int]:
    """Score all test impressions as ``evaluate`` does."""
    yield len(score(network, test_examples(config, world.log, world.test)))


def rate(steps: Iterator[int], seconds: float) -> float:
    """Rows a second over whole steps that fill the time; the first step warms up."""
    next(steps)
    rows, begin, spent = 0, time.perf_counter(), 0.0
    for count in steps:
        rows, spent = rows + count, time.perf_counter() - begin
        if spent >= seconds:
            break
    return rows / spent


def rate_whole(steps: Iterator[int]) -> float:
    """Rows a second of a pass that is timed from its start to its end."""
    begin = time.perf_counter()
    return sum(steps) / (time.perf_counter() - begin)


def same_answers(world: World, config: RunConfig, ours: Network, reference: PerRowThacil) -> float:
    """Largest difference of logits on test impressions, with the same weights on both sides."""
    reference.load_state_dict(ours.state_dict())
    few = world.test.take(np.linspace(0, len(world.test) - 1, 4 * BATCH).astype(np.int64))
    dataset = per_row(world, few, world.test_features)
    reference.eval()
    with torch.inference_mode():
        batches = [
            reference(*inputs).numpy() for *inputs, _ in DataLoader(dataset, batch_size=BATCH)
        ]
    logits = score(ours, test_examples(config, world.log, few))
    return float(np.abs(np.concatenate(batches) - logits).max())


def measure(world: World, config: RunConfig, *, rounds: int, seconds: float) -> dict[str, float]:
    """Time both sides in turns; flat name -> number."""
    small = config.model_copy(
        update={"optim": config.optim.model_copy(update={"batch_size": BATCH})}
    )
    ours = build_network(config, feature_dim=FEATURES, num_categories=CATEGORIES)
    reference = PerRowThacil(FEATURES, CATEGORIES)
    difference = same_answers(world, config, ours, reference)
    if difference > 1e-4:  # noqa: PLR2004  float32 noise is a tenth of that
        raise SystemExit(
            f"the two sides differ by {difference:.1e} in a logit: not the same network"
        )
    sides: dict[str, Callable[[], float]] = {
        "train_per_row": lambda: rate(train_per_row(world, reference), seconds),
        "train_ours": lambda: rate(train_ours(world, config, ours), seconds),
        "train_ours_batch_128": lambda: rate(train_ours(world, small, ours), seconds),
        "evaluate_per_row": lambda: rate(score_per_row(world, reference), seconds),
        "evaluate_ours": lambda: rate_whole(score_ours(world, config, ours)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            rates[name].append(side())
            print(f"round {number + 1}  {name:22s} {rates[name][-1]:12,.0f} a second", flush=True)
    return {"largest_logit_difference": difference, **summary(rates)}


def summary(rates: dict[str, list[float]]) -> dict[str, float]:
    """Median, lowest and highest of each side, and the median of the ratios within a round."""
    flat: dict[str, float] = {}
    for name, values in rates.items():
        flat[f"{name}_per_second"] = float(np.median(values))
        flat[f"{name}_per_second_lowest"] = min(values)
        flat[f"{name}_per_second_highest"] = max(values)
    for name, values in rates.items():
        base = rates[f"{name.split('_')[0]}_per_row"]
        if values is not base:
            flat[f"{name}_ratio"] = float(np.median(np.divide(values, base)))
    return flat


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--videos", type=int, default=50_000, help="of each half of the log")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="per side and round")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    world = make_world(options.users, options.videos, np.random.default_rng(0))
    results = measure(world, load_config("modern"), rounds=options.rounds, seconds=options.seconds)
    results["threads"] = torch.get_num_threads()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    for task, unit in (("train", "training examples/s"), ("evaluate", "evaluated pairs/s")):
        print(f"\n{unit:22s} {'median':>10s} {'lowest':>10s} {'highest':>10s} {'ratio':>7s}")
        for name in (n for n in results if n.startswith(task) and n.endswith("_per_second")):
            side = name.removesuffix("_per_second")
            low, high = results[f"{name}_lowest"], results[f"{name}_highest"]
            ratio = results.get(f"{side}_ratio", 1.0)
            print(f"{side:22s} {results[name]:10,.0f} {low:10,.0f} {high:10,.0f} {ratio:6.1f}x")


if __name__ == "__main__":
    main()
