"""Calibration: fitted on validation, folded into the served graph, no ranking changed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store import ModelStore
from training.calibrate import (
    UNCALIBRATED,
    Calibration,
    calibrate,
    fit_line,
    load_calibration,
    prior_shift,
)
from training.config import RunConfig, parse_config
from training.errors import ConfigError, DataError
from training.evaluate import score, test_examples, train_examples
from training.export import publish
from training.fit import fit, load_run
from training.interactions import ClickLog, load_click_log
from training.metrics import (
    expected_calibration_error,
    mean_auc,
    predicted_over_observed,
    probability,
)
from training.models.thacil import Thacil
from training.split import Split
from training.synthetic import synthesize


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=80, videos=600, interactions=12_000, seed=5, categories=8, feature_dim=12)
    return load_click_log(out)


def _config(**data: float) -> RunConfig:
    network = {"item_dim": 8, "category_dim": 8, "num_heads": 2, "hidden_dim": 16}
    return parse_config(
        {
            "preset": "modern",
            "threads": 1,
            "network": {**network, "num_blocks": 3, "block_size": 4},
            "data": {"validation_item_share": 0.2, **data},
            "optim": {"batch_size": 64, "max_epochs": 2, "learning_rate": 0.003},
        },
        source="test",
    )


def test_a_known_line_is_found() -> None:
    """Clicks drawn from sigmoid(0.5 z - 1.2): the fit says so, within its noise."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, 100_000).astype(np.float32)
    labels = (rng.random(100_000) < probability(0.5 * logits - 1.2)).astype(np.float32)

    line = fit_line(labels, logits)

    assert line.slope == pytest.approx(0.5, abs=0.02)
    assert line.intercept == pytest.approx(-1.2, abs=0.03)


labelled = st.lists(st.tuples(st.booleans(), st.floats(-20, 20, width=32)), min_size=2, max_size=40)


@given(labelled.filter(lambda rows: 0 < sum(c for c, _ in rows) < len(rows)))
def test_no_line_nearby_is_likelier(rows: list[tuple[bool, float]]) -> None:
    """The fit is a minimum of its loss, finite, and rises with the logit, whatever the labels."""
    labels = np.array([c for c, _ in rows], np.float32)
    logits = np.array([z for _, z in rows], np.float32)
    clicks = labels.sum()
    target = np.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (len(rows) - clicks + 2))

    def loss(slope: float, intercept: float) -> float:
        z = slope * logits.astype(np.float64) + intercept
        return float(np.mean(np.logaddexp(0, z) - target * z))

    line = fit_line(labels, logits)

    assert math.isfinite(line.intercept)
    assert line.slope > 0
    here = loss(line.slope, line.intercept)
    assert all(here <= loss(line.slope, line.intercept + d) + 1e-9 for d in (-0.01, 0.01))
    if line.slope != 1.0:
        assert all(here <= loss(line.slope + d, line.intercept) + 1e-9 for d in (-1e-3, 1e-3))


def test_scores_that_rank_backwards_are_not_turned_around() -> None:
    """Worse than chance on validation: the base rate is mended, the order left alone."""
    logits = np.array([3.0, 2.0, 1.0, -1.0, -2.0], np.float32)
    labels = np.array([0.0, 0.0, 0.0, 1.0, 1.0], np.float32)

    line = fit_line(labels, logits)

    assert line.slope == 1.0
    assert line.intercept != 0.0


def test_what_cannot_be_fitted_is_refused() -> None:
    """One class only, or scores that are no numbers: an error that counts them."""
    with pytest.raises(DataError, match="got 2, 0"):
        fit_line(np.ones(2), np.zeros(2))
    with pytest.raises(DataError, match="1 of 2 logits"):
        fit_line(np.array([1.0, 0.0]), np.array([np.inf, 0.0]))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_the_prior_shift_is_the_share_of_negatives_drawn(log: ClickLog, ratio: float) -> None:
    """It is counted from what an epoch really draws; without sampling it is zero."""
    config = _config(negatives_per_positive=ratio)
    split = Split.of(config, np.bincount(log.train.item_ids) > 0, log.train)
    learns = split.learns(log.train)
    drawn = train_examples(config, log, learns).shuffled(
        1, np.random.default_rng(0), negatives=ratio
    )
    kept = (learns.labels[drawn.rows] == 0).sum()

    assert math.exp(prior_shift(config, [learns])) == pytest.approx(
        kept / (learns.labels == 0).sum()
    )
    assert prior_shift(_config(), [learns]) == 0.0


@pytest.mark.parametrize(("share", "shifts"), [(0.0, True), (0.9, True), (1.0, False)])
def test_pairs_alone_learn_no_odds_to_shift(log: ClickLog, share: float, *, shifts: bool) -> None:
    """As long as cross entropy has a share of the loss, sampling moves what it learns."""
    config = _config(negatives_per_positive=1.0)
    optim = config.optim.model_copy(update={"pairwise_share": share})
    config = config.model_copy(update={"optim": optim})

    assert (prior_shift(config, [log.train]) < 0.0) is shifts


def test_sampled_negatives_leave_no_trace_in_probabilities(log: ClickLog, tmp_path: Path) -> None:
    """Trained on a negative for every four clicks, scores are far too high; calibrated, about right."""
    fit(_config(negatives_per_positive=0.25), log, tmp_path)
    line = calibrate(tmp_path, log)
    config, network = load_run(tmp_path)
    assert log.test is not None
    raw = score(network, test_examples(config, log, log.test))
    users, labels, mended = log.test.user_ids, log.test.labels, line.apply(raw)

    assert predicted_over_observed(labels, raw) > 1.4
    assert 0.85 < predicted_over_observed(labels, mended) < 1.15
    assert expected_calibration_error(labels, mended) < expected_calibration_error(labels, raw) / 2
    # A rising line leaves the order as it is, but for pairs that float32 cannot tell apart.
    assert mean_auc(users, labels, mended) == pytest.approx(mean_auc(users, labels, raw), abs=5e-4)


def test_the_served_graph_gives_the_calibrated_probability(tmp_path: Path, log: ClickLog) -> None:
    """Published scores are the network's on the line, candidate by candidate, in the same order."""
    fit(_config(negatives_per_positive=1.0), log, tmp_path / "run")
    line = calibrate(tmp_path / "run", log)
    _, network = load_run(tmp_path / "run")
    assert isinstance(network, Thacil)
    store = ModelStore(tmp_path / "store")
    store.promote(publish(network, store, calibration=line))
    opened = store.open()
    assert log.test_features is not None
    features = np.array(log.test_features[:100], np.float32)
    categories = np.arange(100, dtype=np.int64) % 8
    model = opened.model
    rows = model.encode_videos(features, categories)
    served = model.logits(model.profile(rows[:7]), rows)
    with torch.inference_mode():
        embedded = network.embed(torch.from_numpy(features), torch.from_numpy(categories))
        clicks = torch.zeros(1, 12, embedded.shape[1])
        clicks[0, :7] = embedded[:7]
        user = torch.zeros(100, dtype=torch.int64)
        raw = network(clicks, torch.tensor([7]), user, embedded).numpy()

    expected = probability(
        line.slope * (raw.astype(np.float64) + line.prior_shift) + line.intercept
    )
    assert line != UNCALIBRATED
    np.testing.assert_allclose(probability(served), expected, atol=1e-5)
    assert np.abs(probability(raw) - expected).max() > 0.01
    assert np.argsort(served).tolist() == np.argsort(raw).tolist()
    assert store.manifest(store.current()).provenance["calibration"] == {
        "prior_shift": line.prior_shift,
        "slope": line.slope,
        "intercept": line.intercept,
    }


def test_a_calibration_belongs_to_its_weights(log: ClickLog, tmp_path: Path) -> None:
    """It is kept while the weights stay, refused when they changed, and fitted anew on demand."""
    fit(_config(), log, tmp_path)
    assert load_calibration(tmp_path) == UNCALIBRATED
    line = calibrate(tmp_path, log)
    assert load_calibration(tmp_path) == line == calibrate(tmp_path, log)

    state = torch.load(tmp_path / "best.pt", weights_only=True)
    state["output.bias"] += 1.0
    torch.save(state, tmp_path / "best.pt")

    with pytest.raises(ConfigError, match="python -m training calibrate"):
        load_calibration(tmp_path)
    # A logit higher by one everywhere needs an intercept lower by the slope.
    moved = calibrate(tmp_path, log)
    assert moved.intercept == pytest.approx(line.intercept - line.slope, abs=1e-3)
    assert moved.slope == pytest.approx(line.slope, abs=1e-3)


def test_calibration_is_a_line() -> None:
    """Applied by hand: slope times the shifted logit, plus the intercept."""
    line = Calibration(prior_shift=-1.0, slope=0.5, intercept=0.25)

    applied = line.apply(np.array([3.0, 1.0], np.float32))

    assert applied.tolist() == [1.25, 0.25]
    assert applied.dtype == np.float32
