"""Where and how a run computes: precision, compilation, journals, shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import ExecutionConfig, RunConfig, load_config
from training.evaluate import build_network, train_examples
from training.fit import fit
from training.impressions import COLUMN_NAMES, Impressions
from training.interactions import ClickLog, load_click_log
from training.loop import make_loss
from training.npy_file import NpyFile
from training.objective import plan_epoch
from training.shards import Shards
from training.synthetic import synthesize

SETTINGS = """
threads = 1
[network]
item_dim = 8
category_dim = 8
num_heads = 2
num_blocks = 4
block_size = 5
hidden_dim = 16
hidden_dropout = 0.0
[data]
validation_item_share = 0.2
[optim]
batch_size = 64
max_epochs = 1
[execution]
log_steps = 5
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=60, videos=400, interactions=6000, seed=1, categories=8, feature_dim=12)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


def _config(directory: Path, more: str = "", model: str = "thacil") -> RunConfig:
    path = directory / "run.toml"
    path.write_text(SETTINGS + more)
    return load_config("modern", overrides=path, top={"model": model})


def test_bfloat16_computes_steps_and_keeps_weights(log: ClickLog, tmp_path: Path) -> None:
    """Gradients are those of float32 to two digits; weights, optimiser and scores stay float32."""
    config = _config(tmp_path)
    half = config.model_copy(update={"execution": ExecutionConfig(precision="bfloat16")})
    torch.manual_seed(0)
    network = build_network(config, feature_dim=12, num_categories=log.num_categories)
    examples = train_examples(config, log, log.train)
    batch = next(plan_epoch(config, examples, np.random.default_rng(0), 256).batches())
    gradients = []
    for one in (config, half):
        network.zero_grad()
        make_loss(one, torch.device("cpu"))(network, batch).backward()
        named = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat(named))
    assert gradients[1].dtype == torch.float32
    assert not torch.equal(*gradients)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99

    progress = fit(half, log, tmp_path / "run")
    exact = fit(config, log, tmp_path / "exact")
    assert progress.last_loss == pytest.approx(exact.last_loss, abs=0.01)
    weights = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_same_step(log: ClickLog, tmp_path: Path) -> None:
    """Loss and gradient of the compiled loss are those of the plain one, pairs of users included."""
    config = _config(tmp_path)
    assert config.optim.pairwise_share > 0
    compiled = config.model_copy(update={"execution": ExecutionConfig(compile=True)})
    torch.manual_seed(0)
    network = build_network(config, feature_dim=12, num_categories=log.num_categories)
    examples = train_examples(config, log, log.train)
    batch = next(plan_epoch(config, examples, np.random.default_rng(0), 64).batches())
    found = []
    for one in (config, compiled):
        network.zero_grad()
        loss = make_loss(one, torch.device("cpu"))(network, batch)
        loss.backward()
        gradient = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        found.append(torch.cat([loss.detach().reshape(1), *gradient]))

    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_steps_are_told_as_they_go(log: ClickLog, tmp_path: Path) -> None:
    """A line every five steps: their mean loss, which together are the epoch's."""
    progress = fit(_config(tmp_path), log, tmp_path / "run")

    lines = [json.loads(x) for x in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, progress.steps + 1, 5))
    assert np.mean([line["train_loss"] for line in lines]) == pytest.approx(
        progress.last_loss, abs=0.02
    )
    assert all(line["examples_per_second"] > 0 for line in lines)


def test_tensorboard_shows_what_the_journal_says(world: Path, tmp_path: Path) -> None:
    """The events hold the numbers of steps.jsonl and of the epoch."""
    pytest.importorskip("tensorboard")
    _config(tmp_path, "tensorboard = true\n")
    run = tmp_path / "run"
    arguments = ["--data", str(world), "--config", str(tmp_path / "run.toml"), "--out", str(run)]
    # A process of its own: TensorBoard's imports warn of things that are not ours.
    subprocess.run(
        [sys.executable, "-m", "training", "fit", *arguments], check=True, capture_output=True
    )
    script = (
        "import json, sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1])\n"
        "events.Reload()\n"
        "tags = events.Tags()['scalars']\n"
        "print(json.dumps({t: [[e.step, e.value] for e in events.Scalars(t)] for t in tags}))\n"
    )
    read = subprocess.run(
        [sys.executable, "-c", script, str(run / "tensorboard")],
        check=True,
        capture_output=True,
        text=True,
    )
    shown = json.loads(read.stdout.splitlines()[-1])

    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    epoch = json.loads((run / "metrics.jsonl").read_text())
    for name in ("train_loss", "learning_rate"):
        told = [[line["step"], pytest.approx(line[name], rel=1e-5)] for line in lines]
        assert shown[name] == told
    assert shown["epoch/validation_gauc"][0][1] == pytest.approx(epoch["validation_gauc"])


def test_shards_are_whole_users_and_cover_the_log(log: ClickLog, tmp_path: Path) -> None:
    """An epoch over shards holds each impression about once, and a user's all in one shard."""
    config = _config(tmp_path, "")
    config = config.model_copy(update={"data": replace_data(config, shard_rows=900)})
    shards = Shards(config, log)
    train = log.train
    seen = []
    for epoch in (1, 2):
        batches = list(shards.batches(epoch))
        users = [set(batch.user_ids.tolist()) for batch in batches]
        runs = [min(u) for u in users]
        seen.append(runs)
        assert sum(len(batch.labels) for batch in batches) > 0.9 * shards.rows
        assert len(batches) == shards.steps
    assert seen[0] != seen[1]
    parts = list(shards.learns())
    assert len(parts) > 3
    assert sum(len(part) for part in parts) == shards.rows
    owners = [set(part.user_ids.tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(np.unique(train.user_ids))


def replace_data(config: RunConfig, **changes: int) -> object:
    """The data section with some values changed."""
    return config.data.model_copy(update=changes)


@pytest.mark.parametrize("shard_rows", [1 << 23, 900])
@pytest.mark.parametrize(
    ("model", "negatives"), [("thacil", None), ("thacil", 0.7), ("thacil", 3.0), ("bpr", None)]
)
def test_an_epoch_has_as_many_steps_as_it_says(
    log: ClickLog, tmp_path: Path, model: str, negatives: float | None, shard_rows: int
) -> None:
    """Where negatives are drawn, pairs learnt from, or the log lies in shards, too."""
    config = _config(tmp_path, model=model)
    changes = {"negatives_per_positive": negatives, "shard_rows": shard_rows}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})

    shards = Shards(config, log)

    assert sum(1 for _ in shards.batches(1)) == shards.steps


def test_the_rate_reaches_its_end_with_the_epoch(log: ClickLog, tmp_path: Path) -> None:
    """Linear over the steps that there are: drawn negatives make fewer than all impressions do."""
    config = _config(tmp_path, model="mean_pooling")
    config = config.model_copy(update={"data": replace_data(config, negatives_per_positive=1)})

    (entry,) = fit(config, log, tmp_path / "run").history

    assert entry["learning_rate"] == pytest.approx(0.01 * config.optim.learning_rate)


def test_an_epoch_over_shards_takes_the_memory_of_one(tmp_path: Path) -> None:
    """Of a log of 72 MB of columns, reading every step of an epoch takes less than 24 MB."""
    rows, users, videos = 2_000_000, 20_000, 2000
    rng = np.random.default_rng(0)
    columns = {
        "user_ids": np.sort(rng.integers(0, users, rows)),
        "item_ids": rng.integers(0, videos, rows),
        "categories": np.zeros(rows, np.int64),
        "labels": (rng.random(rows) < 0.2).astype(np.float32),
        "timestamps_ms": np.arange(rows),
    }
    log, index = ClickLog(
        Impressions(**columns), np.zeros((videos, 4), np.float16), None, None, 1
    ).indexed()
    for name, column in zip(COLUMN_NAMES, log.train.columns(), strict=True):
        with NpyFile(tmp_path / f"{name}.npy", column.dtype) as file:
            file.append(column)
    mapped = Impressions(*(np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in COLUMN_NAMES))
    log = replace(log, train=mapped, index=index)
    config = _config(tmp_path)
    optim = config.optim.model_copy(update={"batch_size": 4096})
    data = config.data.model_copy(
        update={"shard_rows": 1 << 16, "validation_item_share": 0.02, "history": "causal"}
    )
    config = config.model_copy(update={"optim": optim, "data": data, "model": "bpr"})
    sizes = pytest.MonkeyPatch()
    sizes.setattr("training.split._ROWS_PER_PASS", 1 << 16)
    tracemalloc.start()
    try:
        shards = Shards(config, log)
        steps = sum(1 for _ in shards.batches(1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        sizes.undo()

    assert steps > 100
    assert sum(column.nbytes for column in log.train.columns()) >= 72e6
    assert peak < 24e6
