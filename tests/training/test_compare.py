"""The comparison: one protocol, resumed where it stopped, and a report that holds what was found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from training.__main__ import main
from training.attention import ATTENTIONS, attention_deviation
from training.calibrate import load_calibration
from training.compare import Comparison, by_history, compare, contenders, departures
from training.errors import ConfigError, DataError
from training.evaluate import score, test_examples
from training.fit import load_run
from training.inspection import inspect_log
from training.interactions import ClickLog, load_click_log
from training.metrics import mean_auc
from training.report import comparison_page, comparison_text, titled, verdict
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
learning_rate = 0.003
"""
MODELS = ("thacil", "mean_pooling", "bpr")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=50, videos=400, interactions=5000, seed=1, categories=8, feature_dim=12)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def found(log: ClickLog, tiny: Path, out: Path) -> Comparison:
    return compare(contenders(MODELS, overrides=tiny), log, out, seeds=2, cutoffs=(1, 3, 10))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, and would be used")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, tiny: Path, log: ClickLog) -> None:
    """Not left aside: whoever asks for CUDA does not want to wait for a CPU."""
    path = tmp_path / "cuda.toml"
    path.write_text(tiny.read_text() + '[execution]\ndevice = "cuda"\n')
    with pytest.raises(ConfigError, match="cuda"):
        compare(contenders(["thacil"], overrides=path), log, tmp_path, seeds=1)


def test_a_result_is_what_its_run_scores(found: Comparison, log: ClickLog, out: Path) -> None:
    """Each seed's figure is that of its saved network, calibrated, on the test file."""
    assert log.test is not None
    for label, result in found.results.items():
        for one in result.seeds:
            run = out / "runs" / label / f"seed-{one.seed}"
            config, network = load_run(run)
            raw = score(network, test_examples(config, log, log.test))
            logits = load_calibration(run).apply(raw)
            expected = mean_auc(log.test.user_ids, log.test.labels, logits)

            assert config.seed == one.seed
            assert config.model == result.contender.config.model
            assert one.metrics["user_auc"] == pytest.approx(expected)
            assert one.user_auc.mean() == pytest.approx(expected)


def test_differences_are_paired_over_users_with_seeds_averaged(found: Comparison) -> None:
    """The difference is that of the means over seeds; the users are counted once, not per seed."""
    thacil = found.results["thacil"]

    assert list(found.results) == list(MODELS)
    for label, one in found.differences.items():
        expected = found.results[label].mean("user_auc") - thacil.mean("user_auc")
        assert one.user_auc.difference == pytest.approx(expected)
        assert one.gauc.difference == pytest.approx(
            found.results[label].mean("gauc") - thacil.mean("gauc")
        )
        assert one.user_auc.users == len(found.users) == len(thacil.user_auc)
        assert one.user_auc.low < one.user_auc.difference < one.user_auc.high
        assert one.p_holm >= one.user_auc.p_value


def test_what_is_finished_is_not_done_again(
    found: Comparison, log: ClickLog, tiny: Path, out: Path
) -> None:
    """A second call trains and scores nothing; one more model trains that model only."""
    files = sorted((out / "runs").rglob("*"))
    stamps = {path: path.stat().st_mtime_ns for path in files if path.name != "config.json"}

    again = compare(contenders(MODELS, overrides=tiny), log, out, seeds=2, cutoffs=(1, 3, 10))
    more = compare(
        contenders([*MODELS, "ncf"], overrides=tiny), log, out, seeds=1, cutoffs=(1, 3, 10)
    )

    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for label in MODELS:
        assert (again.results[label].user_auc == found.results[label].user_auc).all()
    assert list(more.results) == [*MODELS, "ncf"]


def test_scores_of_other_weights_are_not_reused(log: ClickLog, tiny: Path, tmp_path: Path) -> None:
    """A saved score belongs to weights and test file; where they differ it is made anew."""
    field = contenders(["thacil"], overrides=tiny)
    compare(field, log, tmp_path, seeds=1)
    run = tmp_path / "runs" / "thacil" / "seed-1"
    truth = np.load(run / "test_logits.npy")
    np.save(run / "test_logits.npy", np.zeros_like(truth))
    (run / "test_logits.sha256").write_text("of something else")

    compare(field, log, tmp_path, seeds=1)

    assert (np.load(run / "test_logits.npy") == truth).all()


def test_attention_is_measured_where_there_is_any(
    found: Comparison, log: ClickLog, out: Path
) -> None:
    """THACIL's figures are those of each seed's weights; the other models have none."""
    assert log.test is not None
    for one in found.results["thacil"].seeds:
        config, network = load_run(out / "runs" / "thacil" / f"seed-{one.seed}")
        expected = attention_deviation(network, config, log, log.test)
        assert one.attention == pytest.approx(expected)
        assert list(one.attention) == list(ATTENTIONS)
    for label in ("mean_pooling", "bpr"):
        assert [one.attention for one in found.results[label].seeds] == [{}, {}]


def test_scores_from_before_attention_was_measured_are_kept(
    log: ClickLog, tiny: Path, tmp_path: Path
) -> None:
    """A run that lacks only the attention figures gets these, and is not scored again."""
    field = contenders(["thacil"], overrides=tiny)
    first = compare(field, log, tmp_path, seeds=1)
    run = tmp_path / "runs" / "thacil" / "seed-1"
    (run / "test_attention.json").unlink()
    scored = (run / "test_logits.npy").stat().st_mtime_ns

    again = compare(field, log, tmp_path, seeds=1)

    assert again.results["thacil"].seeds[0].attention == first.results["thacil"].seeds[0].attention
    assert (run / "test_logits.npy").stat().st_mtime_ns == scored


@pytest.mark.parametrize("model", ["mean_pooling", "bpr"])
def test_evaluate_says_nothing_of_attention_that_is_not_there(
    model: str, found: Comparison, world: Path, out: Path
) -> None:
    """A baseline and a model that knows users by id are evaluated without such figures."""
    run = out / "runs" / model / f"seed-{found.results[model].seeds[0].seed}"

    assert main(["evaluate", "--data", str(world), "--run", str(run)]) == 0

    written = json.loads((run / "evaluation.json").read_text())
    assert "user_auc" in written
    assert not [name for name in written if "attention" in name]


def test_the_report_has_a_table_of_attention(found: Comparison, log: ClickLog) -> None:
    """Page and terminal show THACIL's mean and lowest seed; without a THACIL there is no table."""
    page, text = comparison_page(found, *inspect_log(log), {}), comparison_text(found, {})
    without = {label: one for label, one in found.results.items() if label != "thacil"}
    others = replace(found, results=without, differences={}, against="bpr")

    for name in ATTENTIONS:
        each = [one.attention[name] for one in found.results["thacil"].seeds]
        cell = f"{np.mean(each):.4f} (lowest {min(each):.4f})"
        assert cell in page
        assert cell in text
    assert "<h2>Attention</h2>" in page
    assert "from uniform" not in comparison_text(others, {})
    assert "<h2>Attention</h2>" not in comparison_page(others, *inspect_log(log), {})


def test_groups_by_history_hold_the_users_in_them(found: Comparison, log: ClickLog) -> None:
    """Every group's mean is over the users whose training clicks lie in its range."""
    names, users, means = by_history(found)
    clicks = {
        int(u): int(log.train.labels[log.train.user_ids == u].sum()) for u in found.users.tolist()
    }

    assert names
    for name, count, mean in zip(names, users.tolist(), means["bpr"].tolist(), strict=True):
        low, high = (*name.rstrip("+").split("-"), "1000000")[:2]
        inside = [int(low) <= clicks[u] <= int(high) for u in found.users.tolist()]
        assert sum(inside) == count
        assert found.results["bpr"].user_auc[inside].mean() == pytest.approx(mean)


def test_contenders_are_read_as_typed(tiny: Path) -> None:
    """A model, a model with a preset, a model with a file; settings that differ are told."""
    plain, paper, other = contenders(["thacil", "thacil@paper", f"lstm@{tiny}"])

    assert (plain.label, paper.label, other.label) == ("thacil", "thacil@paper", "lstm@tiny.toml")
    assert (plain.config.preset, paper.config.preset) == ("modern", "paper")
    assert other.config.network.hidden_dim == 16
    assert titled(paper.label) == "THACIL, paper"
    assert titled(other.label) == "LSTM, tiny"


def test_all_faults_of_the_field_are_told_at_once() -> None:
    """Unknown models and presets, and names given twice, in one error."""
    with pytest.raises(ConfigError) as refused:
        contenders(["thacil", "thacil", "gru", "lstm@future"])

    text = str(refused.value)
    assert "'thacil' is named twice" in text
    assert "no model 'gru'" in text
    assert "no preset 'future'" in text


def test_files_of_one_name_are_told_apart_by_refusal(tiny: Path, tmp_path: Path) -> None:
    """Two files that would give two contenders one name and one directory are refused."""
    other = tmp_path / tiny.name
    other.write_text(TINY)

    with pytest.raises(ConfigError, match=r"two contenders would be called lstm@tiny\.toml"):
        contenders([f"lstm@{tiny}", f"lstm@{other}"])


def test_who_is_held_against_must_take_part(log: ClickLog, tiny: Path, tmp_path: Path) -> None:
    """No thacil in the field and none named: refused, with the way out."""
    field = contenders(["bpr"], overrides=tiny)

    with pytest.raises(ConfigError, match="--against"):
        compare(field, log, tmp_path, seeds=1)
    with pytest.raises(DataError, match=r"no test_data\.csv"):
        compare(
            field,
            ClickLog(log.train, log.train_features, None, None, 8),
            tmp_path,
            seeds=1,
            against="bpr",
        )


class _Outline(HTMLParser):
    """Collects tags that were opened and not closed, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.fetched += [
            value
            for name, value in attrs
            if name in {"src", "href", "xlink:href"} and value and not value.startswith("#")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(found: Comparison, log: ClickLog) -> None:
    """Well-nested HTML that fetches nothing, names every model and shows its figures."""
    page = comparison_page(found, *inspect_log(log), {"oracle_auc": 0.9123, "oracle_gauc": 0.9})
    outline = _Outline()
    outline.feed(page)

    assert outline.open == []
    assert outline.fetched == []
    # Groups by history are drawn where there are several.
    assert page.count("<svg") == 6 + (len(by_history(found)[0]) > 1)
    assert "0.9123" in page
    for label, result in found.results.items():
        assert titled(label) in page
        assert f"{result.parameters:,}" in page
        assert f"{result.mean('user_auc'):.4f}" in page


def test_the_verdict_follows_the_adjusted_p(found: Comparison) -> None:
    """Each other model is called better, worse or level by its sign and its Holm p."""
    said = verdict(found)

    for label, one in found.differences.items():
        groups = re.search(rf"(better than|worse than|apart from)[^;]*{titled(label)}", said)
        assert groups is not None
        level = one.p_holm >= 0.05
        expected = (
            "apart from"
            if level
            else "worse than"
            if one.user_auc.difference > 0
            else "better than"
        )
        assert groups.group(1) == expected
    assert said in comparison_text(found, {})


def test_only_settings_that_differ_are_departures(log: ClickLog, found: Comparison) -> None:
    """Models of one configuration depart in nothing."""
    assert departures(found) == {label: {} for label in MODELS}


def test_the_verb_writes_a_report(world: Path, tiny: Path, out: Path, found: Comparison) -> None:
    """Compare, as a user types it, reads the finished runs and writes page, JSON and CSV."""
    arguments = ["compare", "--data", str(world), "--models", "thacil,bpr", "--seeds", "2"]

    assert main([*arguments, "--config", str(tiny), "--cutoffs", "1,3", "--out", str(out)]) == 0

    saved = json.loads((out / "report.json").read_text())
    header, *rows = (out / "user_auc.csv").read_text().splitlines()
    assert saved["models"]["bpr"]["mean"]["user_auc"] == found.results["bpr"].mean("user_auc")
    assert saved["differences"]["bpr"]["user_auc"]["users"] == len(rows)
    assert saved["models"]["bpr"]["lists"]["reference"]["cutoffs"] == [1, 3]
    assert set(saved["models"]["thacil"]["seeds"][0]["attention"]) == set(ATTENTIONS)
    assert header == "user_id,thacil,bpr"
    assert float(rows[0].split(",")[2]) == pytest.approx(found.results["bpr"].user_auc[0], abs=1e-6)
    assert "AUC per user" in (out / "report.html").read_text()
