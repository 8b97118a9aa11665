"""Impressions scored part by part are scored as all together, whatever the lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import by_length
from training.by_length import Part, logits_by_length, parts_of
from training.evaluate import build_network, forward, test_examples
from training.interactions import load_click_log
from training.synthetic import synthesize

from .test_baselines import HISTORY_MODELS, _config

histories = st.lists(st.integers(0, 9), min_size=1, max_size=200)


@given(histories, st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_every_impression_is_in_one_part(lengths: list[int], users: list[int]) -> None:
    """With its own history, none of them longer than the part says."""
    lengths_U = torch.tensor(lengths)
    user_N = torch.tensor([user % len(lengths) for user in users])

    parts = list(parts_of(lengths_U, user_N))

    rows = torch.cat([part.rows for part in parts])
    assert sorted(rows.tolist()) == list(range(len(users)))
    assert sorted(torch.cat([part.users for part in parts]).tolist()) == list(range(len(lengths)))
    for part in parts:
        assert part.longest == int(lengths_U[part.users].max())
        torch.testing.assert_close(part.users[part.user], user_N[part.rows])
    assert [p.longest for p in parts] == sorted(p.longest for p in parts)


@given(histories, st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_logits_come_in_the_order_of_the_impressions(lengths: list[int], users: list[int]) -> None:
    """Wherever their part was scored."""
    user_N = torch.tensor([user % len(lengths) for user in users])

    def logits_of(part: Part) -> torch.Tensor:
        return part.rows * 1_000.0 + part.users[part.user]

    found = logits_by_length(torch.tensor(lengths), user_N, logits_of)

    assert found.tolist() == (torch.arange(len(users)) * 1_000.0 + user_N).tolist()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("model", HISTORY_MODELS)
def test_parts_change_no_score_and_no_gradient(
    model: str, training: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any model that reads a history."""
    synthesize(
        tmp_path, users=120, videos=300, interactions=6_000, seed=3, categories=8, feature_dim=12
    )
    log = load_click_log(tmp_path)
    assert log.test is not None
    plain = _config(model)
    no_dropout = plain.network.model_copy(update={"hidden_dropout": 0.0})
    config = plain.model_copy(update={"network": no_dropout})
    torch.manual_seed(0)
    network = build_network(config, feature_dim=12, num_categories=8, num_users=4).train(training)
    batch = next(iter(test_examples(config, log, log.test).sequential(1_000)))
    assert len(batch.lengths) > 64

    found = []
    for together in (10**9, 1):
        monkeypatch.setattr(by_length, "_WORTH_IT", together)
        network.zero_grad()
        logits = forward(network, batch)
        logits.sigmoid().sum().backward()
        found.append(
            (logits.detach(), [p.grad for p in network.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    for whole, parts in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
