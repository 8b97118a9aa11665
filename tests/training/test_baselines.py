"""The baselines: masks, cold videos and users, sizes, and the one loop that trains them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from training.config import MODELS, RunConfig, parse_config
from training.evaluate import build_network, score, test_examples
from training.export import _export
from training.fit import fit, load_run
from training.interactions import ClickLog, load_click_log
from training.models import PERSONAL_MODELS, HistoryNetwork, PersonalNetwork, count_parameters
from training.models.bpr import pairwise_loss
from training.synthetic import synthesize

HISTORY_MODELS = sorted(set(MODELS) - PERSONAL_MODELS)
SIZES = {"feature_dim": 12, "num_categories": 8, "num_users": 4}


def _config(model: str, **optim: float) -> RunConfig:
    network = {"item_dim": 8, "category_dim": 8, "num_heads": 2, "hidden_dim": 16}
    return parse_config(
        {
            "preset": "modern",
            "model": model,
            "threads": 1,
            "network": {**network, "num_blocks": 3, "block_size": 4},
            "data": {"validation_item_share": 0.2},
            "optim": {"batch_size": 64, "max_epochs": 3, "patience": 5, **optim},
        },
        source="test",
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ClickLog:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=40, videos=400, interactions=4000, seed=3, categories=8, feature_dim=12)
    return load_click_log(out)


def _history_network(model: str) -> HistoryNetwork:
    torch.manual_seed(4)
    network = build_network(_config(model), **SIZES).eval()
    assert isinstance(network, HistoryNetwork)
    return network


@pytest.mark.parametrize("model", HISTORY_MODELS)
@pytest.mark.parametrize("length", [0, 1, 4, 7, 12])
def test_padding_changes_nothing(model: str, length: int) -> None:
    """A history scores the same however far it is padded, and with whatever beside it."""
    network, rng = _history_network(model), torch.Generator().manual_seed(length)
    clicks = torch.randn(2, 12, 16, generator=rng)
    clicks[0, length:] = 0.0
    candidates, both = torch.randn(3, 16, generator=rng), torch.tensor([length, 12])
    width = max(4, -(-length // 4) * 4)

    with torch.inference_mode():
        padded = network(clicks, both, torch.zeros(3, dtype=torch.int64), candidates)
        alone = network(clicks[:1, :width], both[:1], torch.zeros(3, dtype=torch.int64), candidates)

    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    assert torch.isfinite(padded).all()
    assert padded.std() > 1e-4


@pytest.mark.parametrize("model", HISTORY_MODELS)
def test_what_lies_in_the_padding_is_never_seen(model: str) -> None:
    """Garbage behind the last click moves no score."""
    network, clicks = _history_network(model), torch.randn(1, 12, 16)
    lengths, user = torch.tensor([5]), torch.zeros(3, dtype=torch.int64)
    candidates, other = torch.randn(3, 16), clicks.clone()
    other[:, 5:] = 100.0

    with torch.inference_mode():
        same = network(clicks, lengths, user, candidates), network(other, lengths, user, candidates)

    torch.testing.assert_close(*same)


@pytest.mark.parametrize("model", ["lstm", "lstm_attention", "atrank"])
def test_order_matters_to_sequence_models(model: str) -> None:
    """The same clicks in another order are another user; to mean pooling they are not."""
    network, mean = _history_network(model), _history_network("mean_pooling")
    clicks, lengths = torch.randn(1, 12, 16), torch.tensor([12])
    user, candidates = torch.zeros(3, dtype=torch.int64), torch.randn(3, 16)

    def moved(net: nn.Module) -> float:
        with torch.inference_mode():
            there = net(clicks, lengths, user, candidates)
            back = net(clicks.flip(1), lengths, user, candidates)
        return float((there - back).abs().max())

    assert moved(network) > 1e-4
    assert moved(mean) < 1e-6


@pytest.mark.parametrize("model", sorted(PERSONAL_MODELS))
def test_a_user_is_known_by_the_id_in_the_log(model: str) -> None:
    """Ids need not be dense; a user who was not in training is the zero vector, not another's."""
    network = build_network(_config(model), **SIZES).eval()
    assert isinstance(network, PersonalNetwork)
    network.users.assign(torch.tensor([3, 7, 1_000_000_007, 2**40]))
    with torch.no_grad():
        network.users.embedding.weight[:4] = torch.arange(1.0, 5.0)[:, None]

    vectors = network.users(torch.tensor([7, 2**40, 0, 8, 2**50]))

    assert vectors[:, 0].tolist() == [2.0, 4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("model", MODELS)
def test_a_cold_video_is_told_apart_by_its_content(model: str) -> None:
    """No model embeds video ids: content alone makes the score, so no video is unknown."""
    network = build_network(_config(model), **SIZES).eval()

    names = [name for name, module in network.named_modules() if isinstance(module, nn.Embedding)]
    rows = network.embed(torch.randn(2, 12), torch.tensor([3, 99]))

    assert all(
        n.split(".")[-1] in {"category_embedding", "embedding", "age_embedding"} for n in names
    )
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert rows[1, 8:].abs().max() == 0


@pytest.mark.parametrize("model", ["lstm", "lstm_attention"])
def test_an_lstm_is_as_large_as_thacil(model: str) -> None:
    """At the paper's sizes the parameter counts differ by less than one unit of the state."""
    sizes = {"feature_dim": 512, "num_categories": 512}
    plain = {"preset": "modern"}
    thacil = build_network(parse_config(plain, source="test"), **sizes)
    lstm = build_network(parse_config({**plain, "model": model}, source="test"), **sizes)

    assert abs(count_parameters(lstm) - count_parameters(thacil)) < 0.005 * count_parameters(thacil)


@pytest.mark.parametrize("model", MODELS)
def test_one_loop_trains_every_model(model: str, log: ClickLog, tmp_path: Path) -> None:
    """Each model lowers its own loss and, loaded again, scores the test file as before."""
    config = _config(model, learning_rate=0.005)

    progress = fit(config, log, tmp_path)
    loaded, network = load_run(tmp_path)
    assert log.test is not None
    logits = score(network, test_examples(loaded, log, log.test))

    assert loaded == config
    assert progress.history[-1]["train_loss"] < progress.history[0]["train_loss"]
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01


def test_pairs_are_a_click_and_another_video_of_the_same_user(log: ClickLog) -> None:
    """Each usable click comes once; the user saw the other video and passed it over."""
    assert log.test is not None
    examples = test_examples(_config("bpr"), log, log.test)
    rows = examples.impressions
    halves = [b.rows.reshape(2, -1) for b in examples.pairs(2, np.random.default_rng(0)).batches()]
    clicked, other = np.concatenate(halves, axis=1)
    usable = {u for u in np.unique(rows.user_ids) if 0 in rows.labels[rows.user_ids == u]}
    clicks = np.flatnonzero((rows.labels == 1) & np.isin(rows.user_ids, sorted(usable)))

    assert sorted(clicked.tolist()) == clicks.tolist()
    assert (rows.labels[other] == 0).all()
    assert (rows.user_ids[clicked] == rows.user_ids[other]).all()


def test_pairwise_loss_is_of_differences() -> None:
    """Only how far the clicked one is ahead counts: ln 2 for equal scores, less when ahead."""
    equal = pairwise_loss(torch.tensor([5.0, -1.0, 5.0, -1.0]))
    ahead = pairwise_loss(torch.tensor([3.0, 0.0]))

    assert equal.item() == pytest.approx(np.log(2))
    assert ahead.item() == pytest.approx(np.log1p(np.exp(-3.0)))


class _Profile(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clicks: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        profile: torch.Tensor = self.network.profile(clicks, lengths)
        return profile


class _Score(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, profile: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network.score(
            profile.expand(len(candidates), -1, -1), candidates
        )
        return logits


@pytest.mark.parametrize("model", sorted(set(HISTORY_MODELS) - {"thacil"}))
def test_a_baseline_exports(model: str) -> None:
    """Profile and score leave as ONNX and answer as the network does, for any length and number."""
    network = _history_network(model)
    clicks, lengths = torch.randn(3, 12, 16), torch.tensor([12, 5, 0])
    clicks[1, 5:], clicks[2] = 0.0, 0.0
    candidates = torch.randn(3, 16)
    with torch.inference_mode():
        profiles = network.profile(clicks, lengths)
        expected = torch.stack([_Score(network)(p[None], candidates) for p in profiles])
    profile_graph, score_graph = (
        onnxruntime.InferenceSession(_export(module, inputs, dynamic, ["out"]).SerializeToString())
        for module, inputs, dynamic in (
            (_Profile(network), (clicks, lengths), {"clicks": {0: "U"}, "lengths": {0: "U"}}),
            (_Score(network), (profiles[:1], candidates), {"profile": {}, "candidates": {0: "N"}}),
        )
    )

    for user in range(3):
        one = slice(user, user + 1)
        (profile,) = profile_graph.run(
            None, {"clicks": clicks[one].numpy(), "lengths": lengths[one].numpy()}
        )
        (logits,) = score_graph.run(
            None, {"profile": profile, "candidates": candidates[:2].numpy()}
        )
        np.testing.assert_allclose(logits, expected[user, :2], atol=1e-5)
