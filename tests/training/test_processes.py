"""Several processes train together: each reads its users only, all learn the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import load_config
from training.errors import ConfigError, DataError
from training.fit import fit
from training.interactions import ClickLog, load_click_log
from training.processes import Processes, device_of
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
[data]
validation_item_share = 0.2
[optim]
learning_rate = 0.01
batch_size = 64
rows_per_user = 4
max_epochs = 3
patience = 5
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=80, videos=1200, interactions=16_000, seed=1, categories=8, feature_dim=6)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def two(world: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two gloo processes, each of which wrote what it read."""
    out = tmp_path_factory.mktemp("two") / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("ranks.py")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(world), str(out), str(settings)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.timeout(400)
def test_no_process_reads_all(two: Path, log: ClickLog) -> None:
    """Rows and clicks fall into two parts, one user's all in one; of features, those named there."""
    ranks = [np.load(two / f"rank-{rank}.npz") for rank in (0, 1)]
    train, index = log.train, log.indexed()[1]
    for name in ("user_ids", "item_ids", "categories", "labels", "timestamps_ms"):
        first, second = (rank[name] for rank in ranks)
        assert len(first) + len(second) <= len(train), name
        assert not set(first.tolist()) & set(second.tolist()), name
        assert min(len(first), len(second)) > 0.4 * len(train), name
        assert train.user_ids[first].max() < train.user_ids[second].min(), name
    for name in ("clicks_item_ids", "clicks_timestamps_ms"):
        first, second = (set(rank[name].tolist()) for rank in ranks)
        # The oldest click stands in where a search has ended.
        assert len(first & second) <= 1, name
        assert max(len(first), len(second)) < 0.6 * len(index.histories.item_ids), name
    for rank in ranks:
        named = np.unique(train.item_ids[rank["item_ids"]])
        assert np.isin(rank["features"], named).all()
        assert len(rank["features"]) < len(log.train_features)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the names of threads")
def test_no_thread_outlives_the_group(two: Path) -> None:
    """A thread of gloo's that meets the interpreter's end aborts a run that had succeeded."""
    for rank in (0, 1):
        threads = (two / f"threads-{rank}.txt").read_text().split()
        assert threads
        assert not [name for name in threads if "gloo" in name], threads


def test_gradients_are_those_of_all_impressions(two: Path) -> None:
    """The exchanged gradient is the one that a single process would have had of both parts."""
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    parts = [
        torch.randn(4 + rank, 3, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)
    ]
    layer(torch.cat(parts)).square().mean().backward()
    for rank in (0, 1):
        found = torch.from_numpy(np.load(two / f"rank-{rank}.npz")["gradient"])
        torch.testing.assert_close(found, layer.weight.grad)


def test_all_begin_with_the_first_ones_weights(two: Path) -> None:
    """Each finds directions among its own users' videos."""
    torch.manual_seed(0)
    expected = torch.nn.Linear(3, 2).weight.detach().numpy()

    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(two / f"rank-{rank}.npz")["shared"], expected)


def test_two_processes_learn_what_one_learns(
    two: Path, log: ClickLog, settings: Path, tmp_path: Path
) -> None:
    """Same validation rows, same metrics within the noise between seeds of one process."""
    seeds = []
    for seed in (1, 2, 3):
        config = load_config("modern", overrides=settings, top={"seed": seed})
        seeds.append(fit(config, log, tmp_path / str(seed)).history)
    shared = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]

    one = seeds[0][-1]
    assert shared[-1]["validation_impressions"] == one["validation_impressions"]
    assert shared[-1]["validation_users"] == one["validation_users"]
    assert shared[-1]["train_rows"] == pytest.approx(one["train_rows"], rel=0.02)
    for name in ("train_loss", "validation_log_loss", "validation_gauc", "validation_user_auc"):
        values = [history[-1][name] for history in seeds]
        spread = max(values) - min(values)
        assert abs(shared[-1][name] - np.mean(values)) < max(2 * spread, 0.03), name
    assert shared[-1]["train_loss"] < shared[0]["train_loss"] - 0.005


def test_users_are_shared_out_evenly(log: ClickLog) -> None:
    """Parts of three processes cover all rows once; more processes than users are refused."""
    config = load_config("modern")
    shards = [Shards(config, log, Watching(rank, 3)) for rank in range(3)]

    rows = [shard.rows for shard in shards]
    learnt = Shards(config, log).rows
    assert sum(rows) == learnt
    assert max(rows) < 1.1 * min(rows)
    with pytest.raises(DataError, match="80 users cannot be shared out to 81 processes"):
        Shards(config, log, Watching(0, 81))


class Watching(Processes):
    """One of several processes whose others say nothing: sums are its own."""

    def sum(self, *values: float) -> list[float]:
        return list(values)

    def lowest(self, value: int) -> int:
        return value


def test_cuda_that_is_not_there_is_refused() -> None:
    """Asking for it is an error with the way out; auto takes what there is."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match='take "auto"'):
        device_of("cuda")
    assert device_of("auto").type == "cpu"
