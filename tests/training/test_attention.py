"""Deviation from uniform: what it says of attention that is dead, decided or anything between."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.attention import (
    ATTENTIONS,
    COLLAPSED,
    attention_deviation,
    collapsed,
    deviations,
    total_variation,
)
from training.attention_report import attention_rows, attention_verdict
from training.checkpoint import network_from_arrays
from training.config import MODELS, RunConfig, load_config
from training.evaluate import build_network, test_examples
from training.interactions import ClickLog, Impressions, load_click_log
from training.models.thacil import Thacil, ThacilShape
from training.synthetic import synthesize

SHARED = Path(os.environ.get("CTR_SHARED", Path(__file__).parents[3] / "shared"))
AUTHORS = SHARED / "reference" / "authors_golden.npz"
SHAPE = ThacilShape(
    feature_dim=6,
    num_categories=5,
    item_dim=4,
    category_dim=4,
    num_heads=2,
    num_blocks=3,
    block_size=4,
    hidden_dim=8,
)
TINY = """
threads = 1
[network]
item_dim = 8
category_dim = 8
num_heads = 2
num_blocks = 4
block_size = 5
hidden_dim = 16
"""


def _attentions(network: Thacil) -> dict[str, nn.Module]:
    return {
        "category": network.category_attention,
        "item": network.item_attention,
        "forward": network.self_attention,
        "target": network.target_attention,
    }


def _scale_scores(network: Thacil, factor: float, *names: str) -> None:
    """Multiply the kernel that scores come out of: 0 is uniform, much is one position."""
    modules = _attentions(network)
    with torch.no_grad():
        for name in names or ATTENTIONS:
            modules[name].score.weight.mul_(factor)


@pytest.fixture
def network() -> Thacil:
    torch.manual_seed(5)
    network = Thacil(SHAPE).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network


@pytest.fixture
def histories() -> tuple[torch.Tensor, torch.Tensor]:
    """Every length from no click to all, padded with zeros: clicks [13, 12, 8], lengths [13]."""
    torch.manual_seed(6)
    lengths = torch.arange(13)
    inside = torch.arange(12) < lengths[:, None]
    return torch.randn(13, 12, 8) * inside[..., None], lengths


def _measured(
    network: Thacil, histories: tuple[torch.Tensor, torch.Tensor], *, seed: int = 7
) -> dict[str, float]:
    """Measure over two impressions of each history."""
    torch.manual_seed(seed)
    user = torch.arange(len(histories[1])).repeat_interleave(2)
    candidates = torch.randn(len(user), 8)
    with torch.inference_mode():
        sums = deviations(network, *histories, user, candidates)
    return {name: float(d / n) for name, (d, n) in zip(ATTENTIONS, sums, strict=True)}


def _by_hand(weights: torch.Tensor) -> float:
    """Average over features of half the absolute distances to 1/n; weights [n, D], n > 1."""
    n, width = weights.shape
    columns = [[float(weights.detach()[p, d]) for p in range(n)] for d in range(width)]
    return sum(sum(abs(w - 1 / n) for w in column) / 2 for column in columns) / width


def test_the_distance_has_the_range_it_claims() -> None:
    """0 for uniform weights, (n - 1) / n for one position, and what a calculation by hand gives."""
    mask = torch.tensor([[True, True, True, False]] * 3)
    weights = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 1, 0, 0], [0.5, 0.3, 0.2, 0]])

    distance = total_variation(weights[..., None], mask)

    torch.testing.assert_close(distance, torch.tensor([0, 2 / 3, 1 / 6]), atol=1e-6, rtol=0)


def test_an_attention_without_scores_is_zero_and_the_others_are_not(
    network: Thacil, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Zeroing one attention's score kernel makes its figure 0, and leaves the rest alive."""
    for name in ATTENTIONS:
        kernel = _attentions(network)[name].score.weight
        kept = kernel.detach().clone()
        _scale_scores(network, 0.0, name)

        measured = _measured(network, histories)

        assert measured[name] == pytest.approx(0.0, abs=1e-6)
        assert collapsed(measured) == [name]
        assert all(measured[other] > 0.1 for other in ATTENTIONS if other != name)
        with torch.no_grad():
            kernel.copy_(kept)


def test_an_attention_that_picks_one_position_is_at_the_top(
    network: Thacil, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Scores a million times as large leave one of n positions: about (n - 1) / n."""
    clicks, lengths = (part[12:] for part in histories)
    _scale_scores(network, 1e6)
    with torch.no_grad():
        # Hidden units that any input moves: a rectifier at rest says the same of all positions.
        for name in ("category", "item", "target"):
            _attentions(network)[name].value.bias.fill_(100.0)

    measured = _measured(network, (clicks, lengths))

    assert measured["category"] == pytest.approx(3 / 4, abs=1e-3)
    assert measured["item"] == pytest.approx(3 / 4, abs=1e-3)
    # The second block has no choice, the third one of two.
    assert measured["forward"] == pytest.approx(1 / 2, abs=1e-3)
    assert measured["target"] == pytest.approx(2 / 3, abs=1e-3)


def test_the_figures_are_those_of_a_loop_over_positions(
    network: Thacil, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """One history, one block, one impression at a time, without padding, gives the same means."""
    _scale_scores(network, 0.1)
    clicks, lengths = histories
    torch.manual_seed(7)
    candidates = torch.randn(26, 8)
    found: dict[str, list[float]] = {name: [] for name in ATTENTIONS}
    for place, candidate in enumerate(candidates):
        length = int(lengths[place // 2])
        history = clicks[place // 2, :length]
        blocks = [history[begin : begin + 4] for begin in range(0, length, 4)]
        for block in (block for block in blocks if len(block) > 1):
            item, category = block.split([4, 4], dim=-1)
            scores = (
                network.category_attention(category, item),
                network.item_attention(item, category),
            )
            found["category"].append(_by_hand(scores[0].softmax(0)))
            found["item"].append(_by_hand(scores[1].softmax(0)))
        if len(blocks) < 2:
            continue
        local = torch.cat([network.local(b[None], torch.ones(1, len(b)) > 0) for b in blocks])
        for i in range(2, len(blocks)):
            found["forward"].append(_by_hand(_looking_back(network, local, i)))
        profile = network.profile(clicks[place // 2][None], lengths[place // 2][None])
        filled = profile.blocks[0, : len(blocks)]
        scores_BD = network.target_attention(filled, candidate)
        found["target"].append(_by_hand(scores_BD.softmax(0)))

    measured = _measured(network, histories)

    assert [len(found[name]) for name in ATTENTIONS] == [42, 42, 8, 16]
    for name, each in found.items():
        assert measured[name] == pytest.approx(np.mean(each), abs=1e-5)


def _looking_back(network: Thacil, local_BD: torch.Tensor, i: int) -> torch.Tensor:
    """Weights of block i over the blocks before it, eq. 6 head by head: [i, D]."""
    attention = network.self_attention
    key = attention.key(local_BD[i]).view(2, 4)
    queries = attention.query(local_BD[:i]).view(i, 2, 4)
    heads = [
        attention.score(5 * torch.tanh((key[h] + queries[:, h] + attention.bias) / 5)).softmax(0)
        for h in range(2)
    ]
    return torch.cat(heads, dim=-1)


def test_padding_and_lonely_positions_do_not_count(
    network: Thacil, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Histories without a choice add nothing, neither to the sum nor to the count."""
    clicks, _ = histories
    lengths = torch.tensor([0, 1])

    with torch.inference_mode():
        sums = deviations(network, clicks[:2], lengths, torch.tensor([0, 1]), torch.randn(2, 8))

    assert (sums == 0).all()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=40, videos=300, interactions=4000, seed=1, categories=8, feature_dim=12)
    return load_click_log(out)


@pytest.fixture
def built(log: ClickLog, tmp_path: Path) -> Callable[[str], tuple[Thacil, RunConfig]]:
    def build(model: str) -> tuple[Thacil, RunConfig]:
        path = tmp_path / "tiny.toml"
        path.write_text(TINY)
        config = load_config("modern", overrides=path, top={"model": model})
        torch.manual_seed(1)
        network = build_network(config, feature_dim=12, num_categories=8, num_users=3)
        return network, config  # type: ignore[return-value]

    return build


def _test_half(log: ClickLog) -> Impressions:
    assert log.test is not None
    return log.test


def test_a_log_is_measured_by_its_own_impressions(
    log: ClickLog, built: Callable[[str], tuple[Thacil, RunConfig]]
) -> None:
    """What the log gives is what its histories give in one batch, and the same a second time."""
    network, config = built("thacil")
    test = _test_half(log)
    (batch,) = test_examples(config, log, test).sequential(len(test))

    with torch.inference_mode():
        videos = network.embed(batch.features, batch.categories)
        sums = deviations(
            network, videos[batch.history], batch.lengths, batch.user, videos[batch.candidate]
        )
    measured = attention_deviation(network, config, log, test)

    assert 256 < len(test) < 4096
    assert list(measured) == list(ATTENTIONS)
    assert list(measured.values()) == pytest.approx((sums[:, 0] / sums[:, 1]).tolist(), abs=1e-6)
    assert attention_deviation(network, config, log, test) == measured


def test_a_large_test_file_is_sampled(
    log: ClickLog, built: Callable[[str], tuple[Thacil, RunConfig]]
) -> None:
    """Of many impressions at most 4,096 are taken, and these are like the rest."""
    network, config = built("thacil")
    test = _test_half(log)
    many = test.take(np.tile(np.arange(len(test)), 20))

    sampled = attention_deviation(network, config, log, many)

    whole = attention_deviation(network, config, log, test)
    assert len(many) > 3 * 4096
    assert sampled != whole
    assert sampled == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"thacil"}))
def test_other_models_have_no_such_figures(
    model: str, log: ClickLog, built: Callable[[str], tuple[Thacil, RunConfig]]
) -> None:
    """A baseline, by history or by user id, has none of THACIL's attentions to measure."""
    assert attention_deviation(*built(model), log, _test_half(log)) == {}


def test_an_attention_without_a_choice_is_left_out(
    log: ClickLog, built: Callable[[str], tuple[Thacil, RunConfig]]
) -> None:
    """No figure, rather than one that is not a number, where nobody has a history."""
    network, config = built("thacil")
    test = _test_half(log)
    strangers = replace(test, user_ids=test.user_ids + 10**6)

    assert attention_deviation(network, config, log, strangers) == {}


def test_a_collapsed_seed_is_named_behind_a_healthy_one() -> None:
    """The mean over seeds hides no dead one: the lowest stands beside it, the sentence names it."""
    alive = dict.fromkeys(ATTENTIONS, 0.4)
    models = {"A": [alive, {**alive, "forward": COLLAPSED / 2}], "B": [alive], "C": [{"item": 0.5}]}

    rows = attention_rows(models)

    assert rows[0] == ("attention from uniform", *ATTENTIONS)
    assert rows[1][3] == "0.2025 (lowest 0.0050)"
    assert rows[2] == ("B", *["0.4000"] * 4)
    assert rows[3] == ("C", "", "0.5000", "", "")
    assert attention_verdict(models) == "Collapsed: A (forward)."
    assert attention_verdict({"B": [alive]}) == "None has collapsed."


def test_the_authors_weights_are_seen_to_have_collapsed() -> None:
    """The released checkpoint: all attentions but the item's are plain means, two to rounding."""
    if not AUTHORS.is_file():
        pytest.skip("the authors' released weights carry no licence and are not part of this tree")
    with np.load(AUTHORS) as file:
        golden = {name: file[name] for name in file.files}
    weights = {n.removeprefix("weights/"): a for n, a in golden.items() if n.startswith("weights/")}
    network = network_from_arrays(weights, num_blocks=8, block_size=20).eval()
    tensors = {name: torch.from_numpy(golden[name]) for name in golden if "/" not in name}

    with torch.inference_mode():
        clicks = network.embed(tensors["history_features"], tensors["history_categories"].long())
        candidates = network.embed(
            tensors["candidate_features"], tensors["candidate_categories"].long()
        )
        user = torch.arange(len(clicks))
        sums = deviations(network, clicks, tensors["lengths"], user, candidates)
    measured = {name: float(d / n) for name, (d, n) in zip(ATTENTIONS, sums, strict=True)}

    assert collapsed(measured) == ["category", "forward", "target"]
    assert measured["category"] < 1e-5
    assert measured["forward"] < 1e-5
    assert measured["item"] == pytest.approx(0.0264, abs=1e-4)
    assert measured["target"] == pytest.approx(0.0078, abs=1e-4)
