"""The synthetic world: reproducible, in the layout, with an oracle that is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training.errors import DataError
from training.interactions import load_click_log
from training.metrics import mean_auc
from training.synthetic import WorldReport, synthesize


def _world(out: Path, seed: int = 3) -> WorldReport:
    return synthesize(out, users=80, videos=400, interactions=20_000, seed=seed, categories=8)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every file of two worlds of one seed is equal; another seed gives another log."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        _world(tmp_path / name, seed)

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    log = "train_data.csv"
    assert (tmp_path / "a" / log).read_bytes() != (tmp_path / "c" / log).read_bytes()


def test_a_world_is_a_log_that_the_trainer_reads(tmp_path: Path) -> None:
    """Test impressions are later than all training ones, of videos never trained on."""
    report = _world(tmp_path)

    log = load_click_log(tmp_path)

    assert log.test is not None
    assert log.test_features is not None
    assert (len(log.train), len(log.test)) == (report.train_rows, report.test_rows)
    assert log.train.timestamps_ms.max() < log.test.timestamps_ms.min()
    assert len(log.train_features) + len(log.test_features) == 400
    assert 0.15 < report.click_share < 0.6


def test_clicks_are_drawn_from_the_saved_probability(tmp_path: Path) -> None:
    """Observed and expected clicks agree within chance, and in each half of the range."""
    _world(tmp_path)
    log, probability = load_click_log(tmp_path), np.load(tmp_path / "train_probability.npy")

    for part in (probability < 0.2, probability >= 0.2):
        expected, spread = probability[part].sum(), np.sqrt(probability[part].sum())
        assert abs(log.train.labels[part].sum() - expected) < 4 * spread


def test_the_oracle_is_the_true_probabilitys_auc(tmp_path: Path) -> None:
    """What is printed and saved is the AUC of the saved probabilities."""
    report = _world(tmp_path)
    log = load_click_log(tmp_path)
    assert log.test is not None
    probability = np.load(tmp_path / "test_probability.npy")

    measured = mean_auc(log.test.user_ids, log.test.labels, probability)

    assert report.oracle_auc == pytest.approx(measured, abs=1e-5)
    assert json.loads((tmp_path / "world.json").read_text())["oracle_auc"] == report.oracle_auc
    assert report.oracle_auc > 0.7


def test_impossible_sizes_are_refused_together(tmp_path: Path) -> None:
    """Every size that is too small is named, and nothing is written."""
    with pytest.raises(DataError, match=r"users is 0, at least 1; videos is 2, at least 8"):
        synthesize(tmp_path / "none", users=0, videos=2, interactions=100, seed=1)

    assert not (tmp_path / "none").exists()
