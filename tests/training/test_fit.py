"""The training loop on a small synthetic world: it learns, stops, resumes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store import Click, ModelStore, visible_history
from training.__main__ import main
from training.attention import ATTENTIONS, attention_deviation
from training.calibrate import load_calibration
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.evaluate import (
    forward,
    measure,
    measure_lists,
    score,
    test_examples,
    validation_examples,
)
from training.examples import Examples
from training.fit import fit, load_run
from training.impressions import COLUMN_NAMES, Impressions
from training.interactions import ClickLog, load_click_log
from training.shards import Shards
from training.split import Split
from training.synthetic import synthesize

TINY = """
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
batch_size = 64
max_epochs = 2
patience = 5
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=60, videos=400, interactions=6000, seed=1, categories=8, feature_dim=12)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return load_config("modern", overrides=path)


def test_training_learns(config: RunConfig, log: ClickLog, tmp_path: Path) -> None:
    """The loss falls from epoch to epoch, and what was learnt is in the run directory."""
    progress = fit(config, log, tmp_path / "run")

    losses = [entry["train_loss"] for entry in progress.history]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert losses[-1] < losses[0]
    assert [json.loads(line)["train_loss"] for line in lines] == losses
    assert load_run(tmp_path / "run")[0] == config


def test_a_resumed_run_ends_with_the_same_weights(
    config: RunConfig, log: ClickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was cut after an epoch and resumed equals one that was not, to the bit."""
    fit(config, log, tmp_path / "whole")
    real = torch.save

    def cut(state: object, path: Path) -> None:
        real(state, path)
        if "checkpoint" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        fit(config, log, tmp_path / "cut")
    # Cut between writing and renaming: that epoch is lost and done again.
    monkeypatch.setattr(torch, "save", real)
    fit(config, log, tmp_path / "cut")

    whole, cut_and_resumed = (load_run(tmp_path / name)[1] for name in ("whole", "cut"))
    for (name, a), b in zip(whole.named_parameters(), cut_and_resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_directory_keeps_one_configuration(
    config: RunConfig, log: ClickLog, tmp_path: Path
) -> None:
    """Another configuration in the same directory is refused, not mixed in."""
    fit(config, log, tmp_path)

    with pytest.raises(ConfigError, match="another configuration"):
        fit(config.model_copy(update={"seed": 2}), log, tmp_path)


def test_a_run_directory_keeps_one_log(config: RunConfig, log: ClickLog, tmp_path: Path) -> None:
    """A log that grew to the same size, or was corrected, is another one."""
    fit(config, log, tmp_path)
    rows, _ = log.indexed()
    labels = rows.train.labels.copy()
    clicked, passed = np.flatnonzero(labels == 1)[0], np.flatnonzero(labels == 0)[0]
    labels[[clicked, passed]] = 0, 1
    other = replace(log, train=replace(rows.train, labels=labels), index=None)

    with pytest.raises(ConfigError, match="or log"):
        fit(config, other, tmp_path)


def test_a_run_directory_keeps_one_set_of_features(
    config: RunConfig, log: ClickLog, tmp_path: Path
) -> None:
    """Extracted anew they are another log, as wide floats the same; a run not told of any goes on."""
    fit(config, log, tmp_path)
    assert log.train_features.dtype == np.float16
    wide = replace(log, train_features=log.train_features.astype(np.float32))
    assert fit(config, wide, tmp_path).done
    extracted_anew = replace(log, train_features=log.train_features[::-1])

    with pytest.raises(ConfigError, match="or log"):
        fit(config, extracted_anew, tmp_path)

    told = json.loads((tmp_path / "config.json").read_text())
    del told["log"]["features"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert fit(config, log, tmp_path).done


def test_the_order_of_rows_does_not_make_another_log(config: RunConfig, log: ClickLog) -> None:
    """Rows of one user and moment stand in the order of the file, which may be written anew."""
    rows = log.indexed()[0].train
    tied = replace(rows, timestamps_ms=np.full_like(rows.timestamps_ms, rows.timestamps_ms[0]))
    digests = {
        (shards.digest(), shards.feature_digest())
        for seed in range(3)
        for order in (np.random.default_rng(seed).permutation(len(tied)),)
        for shards in (Shards(config, replace(log, train=tied.take(order), index=None)),)
    }

    assert len(digests) == 1


@pytest.mark.parametrize("name", COLUMN_NAMES)
def test_every_column_tells_logs_apart(name: str) -> None:
    """Values of two rows exchanged, which leaves every sum as it is, do not go unnoticed."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        ids = rng.integers(0, 1_000_000, (4, 2))
        times = 1_700_000_000_000 + np.array([0, rng.integers(1, 1_000)])
        rows = Impressions(ids[0], ids[1], ids[2], np.array([0.0, 1.0], np.float32), times)
        exchanged = replace(rows, **{name: getattr(rows, name)[::-1]})
        missed += rows.digest() == exchanged.digest()
        assert rows.digest() == rows.part(0, 1).digest() + rows.part(1, 2).digest()
        assert rows.digest() == rows.take(np.array([1, 0])).digest()
    assert missed == 0


def test_a_profile_begins_as_large_as_the_videos(
    config: RunConfig, log: ClickLog, tmp_path: Path
) -> None:
    """Under ``modern``: at ten times that, what a few clicks have by chance is learnt first."""
    slow = config.optim.model_copy(update={"learning_rate": 1e-6})
    fit(config.model_copy(update={"optim": slow}), log, tmp_path)
    _, network = load_run(tmp_path)

    assert float(network.norm.weight.detach().mean()) == pytest.approx(0.1, abs=0.02)


def test_validation_is_on_unseen_videos_later_in_time(config: RunConfig, log: ClickLog) -> None:
    """No validation video is trained on; validation lies in the last part of the log."""
    split = Split.of(config, np.bincount(log.train.item_ids) > 0, log.train)
    learns, validates = split.learns(log.train), split.validates(log.train)

    assert not set(learns.item_ids.tolist()) & set(validates.item_ids.tolist())
    assert validates.timestamps_ms.min() >= np.quantile(log.train.timestamps_ms, 0.69)


def test_no_validation_click_is_in_its_own_history(tmp_path: Path, log: ClickLog) -> None:
    """What is asked for must not be told; ``paper`` shows later clicks, but of no held-out video."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    config = load_config("paper", overrides=path)
    split = Split.of(config, np.bincount(log.train.item_ids) > 0, log.train)
    rows = split.validates(log.train)
    seen = 0
    for batch in validation_examples(config, log, rows, split.held).sequential(64):
        candidates = log.train_features[rows.item_ids[batch.rows]]
        histories = batch.features[batch.history[batch.user]].numpy()
        seen += int((batch.lengths > 0).sum())
        for history, candidate in zip(histories, candidates, strict=True):
            assert not (history == np.asarray(candidate, np.float32)).all(axis=1).any()

    assert seen > 0


def _examples(config: RunConfig, log: ClickLog) -> Examples:
    assert log.test is not None
    return test_examples(config, log, log.test)


def test_batches_hold_the_visible_history(config: RunConfig, log: ClickLog) -> None:
    """What a batch gives as history is what the treaty's visible_history gives."""
    assert log.test is not None
    assert log.test_features is not None
    clicks: dict[int, list[Click]] = {}
    train = log.train
    for row in np.flatnonzero(train.labels == 1):
        clicks.setdefault(int(train.user_ids[row]), []).append(
            Click(int(train.timestamps_ms[row]), str(train.item_ids[row]))
        )
    checked = 0
    for batch in _examples(config, log).sequential(100):
        for n, row in enumerate(batch.rows[:20].tolist()):
            user = int(batch.user[n])
            length = int(batch.lengths[user])
            expected = visible_history(
                clicks.get(int(log.test.user_ids[row]), []),
                before_ms=int(log.test.timestamps_ms[row]),
                length=20,
            )
            seen = batch.features[batch.history[user, :length]].numpy()
            wanted = log.train_features[[int(c.video_id) for c in expected]]
            np.testing.assert_array_equal(seen, wanted)
            np.testing.assert_array_equal(
                batch.features[batch.candidate[n]], log.test_features[log.test.item_ids[row]]
            )
            checked += 1

    assert checked > 100


def test_shuffled_batches_hold_every_impression_once(config: RunConfig, log: ClickLog) -> None:
    """An epoch is a permutation, up to the incomplete last batch."""
    examples = _examples(config, log)

    batches = list(examples.shuffled(64, np.random.default_rng(0)).batches())
    rows = np.concatenate([batch.rows for batch in batches])

    assert len(rows) == len(np.unique(rows)) == len(examples) // 64 * 64


def test_a_users_impressions_stay_together_in_chunks(config: RunConfig, log: ClickLog) -> None:
    """At most the given number of neighbours, and where a chunk begins changes by epoch."""
    examples = _examples(config, log)
    users = examples.impressions.user_ids
    seen = []
    for seed in (0, 1):
        plan = examples.shuffled(10_000, np.random.default_rng(seed), rows_per_user=8)
        batches = list(plan.batches())
        rows = np.concatenate([batch.rows for batch in batches])
        change = np.flatnonzero(np.diff(users[rows])) + 1
        runs = np.diff(np.r_[0, change, len(rows)])
        seen.append({tuple(run) for run in np.split(rows, change)})
        assert len(rows) == len(examples)
        assert 4 < runs.mean() <= 8.5

    assert len(seen[0] & seen[1]) < 0.5 * len(seen[0])


def test_sampled_negatives_keep_their_ratio(config: RunConfig, log: ClickLog) -> None:
    """A negative a click of each user, all of them where there are fewer; drawn anew each epoch."""
    examples = _examples(config, log)
    drawn = [
        np.concatenate([examples.shuffled(1, np.random.default_rng(s), negatives=1).rows])
        for s in (0, 1)
    ]

    labels, users = examples.impressions.labels, examples.impressions.user_ids
    clicks, others = (
        np.bincount(users[labels == value], minlength=users.max() + 1) for value in (1, 0)
    )
    kept = labels[drawn[0]]
    assert (kept == 1).sum() == clicks.sum()
    assert (kept == 0).sum() == np.minimum(clicks, others).sum() < others.sum()
    assert set(drawn[0].tolist()) != set(drawn[1].tolist())


def test_batch_size_does_not_change_a_score(
    config: RunConfig, log: ClickLog, tmp_path: Path
) -> None:
    """Scores do not depend on the company they are computed in."""
    fit(config, log, tmp_path)
    network = load_run(tmp_path)[1]
    examples = _examples(config, log)
    together = score(network, examples)
    alone = np.empty_like(together)
    with torch.inference_mode():
        for batch in examples.sequential(17):
            alone[batch.rows] = forward(network, batch).numpy()

    np.testing.assert_allclose(alone, together, atol=2e-6)


def test_the_verbs_lead_from_a_log_to_a_promoted_version(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fit, evaluate, export and promote, as a user types them."""
    toml, run, store = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "store"
    toml.write_text(TINY)
    data = ["--data", str(world)]

    assert main(["fit", *data, "--config", str(toml), "--out", str(run)]) == 0
    assert main(["evaluate", *data, "--run", str(run)]) == 0
    assert main(["export", "--run", str(run), "--store", str(store)]) == 0
    said = capsys.readouterr().out
    version = said.splitlines()[-1]
    assert main(["promote", version, "--store", str(store)]) == 0

    log = load_click_log(world)
    assert log.test is not None
    config, network = load_run(run)
    raw = score(network, test_examples(config, log, log.test))
    logits = load_calibration(run).apply(raw)
    measured = measure(log.test, logits) | measure_lists(log.test, logits)
    measured["uncalibrated_ece"] = measure(log.test, raw)["ece"]
    deviation = attention_deviation(network, config, log, log.test)
    assert list(deviation) == list(ATTENTIONS)
    measured |= {f"attention_from_uniform_{name}": value for name, value in deviation.items()}
    written = json.loads((run / "evaluation.json").read_text())
    assert {name: written[name] for name in measured} == pytest.approx(measured)
    carried = ModelStore(store).open(version).manifest.metrics
    for name in ATTENTIONS:
        key = f"attention_from_uniform_{name}"
        assert f"{key:36s} {written[key]:.4f}" in said
        assert carried[key] == written[key]
    assert (store / "CURRENT").read_text().strip() == version


def test_a_refusal_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing run is an error message with the way out, no traceback."""
    assert main(["export", "--run", str(tmp_path / "none"), "--store", str(tmp_path)]) == 1

    assert "python -m training fit" in capsys.readouterr().err
