"""What training begins with says of videos what their contents say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.initial_weights import Start, initialise, principal_directions
from training.models import build_baseline
from training.models.thacil import Thacil, ThacilShape

SHAPE = ThacilShape(feature_dim=12, num_categories=6, item_dim=4, category_dim=8, num_heads=2)

ALL = np.arange(300)


def features(videos: int = 300) -> np.ndarray:
    """Contents that differ much along three directions, little along the others."""
    rng = np.random.default_rng(0)
    mixed = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    spread = np.array([5.0, 3.0, 1.0, 0.5, *[0.01] * 8])
    return ((rng.normal(size=(videos, 12)) * spread) @ mixed.T).astype(np.float32)


def test_contents_lie_as_far_apart_along_every_principal_direction() -> None:
    """Uncorrelated, and each with a root mean square of 1."""
    seen = features() @ principal_directions(features(), ALL, 4).T

    np.testing.assert_allclose(seen.T @ seen / len(seen), np.eye(4), atol=1e-3)


def test_a_direction_without_contents_stays_small() -> None:
    """Contents of rank 1, or nothing but zeros: no division by what is not there."""
    line = np.outer(np.arange(50.0), np.arange(12.0)).astype(np.float32)

    assert np.abs(line @ principal_directions(line, ALL[:50], 12).T)[:, 1:].max() < 1e-2
    assert principal_directions(np.zeros((5, 12), np.float32), ALL[:5], 4).shape == (0, 12)
    assert principal_directions(features(), ALL[:0], 4).shape == (0, 12)


def test_a_part_of_the_videos_is_enough() -> None:
    """From all over the table, in any type that a log has."""
    ordered = features(4000)[np.argsort(features(4000)[:, 0])]
    few = principal_directions(ordered.astype(np.float16), np.arange(4000), 3, most=500)
    seen = ordered @ few.T

    np.testing.assert_allclose(seen.T @ seen / len(seen), np.eye(3), atol=0.3)


def test_only_videos_that_may_be_are_looked_at() -> None:
    """What the others hold moves nothing."""
    changed = features()
    changed[100:] = 1e6

    np.testing.assert_array_equal(
        principal_directions(changed, ALL[:100], 4), principal_directions(features(), ALL[:100], 4)
    )


def test_categories_begin_orthogonal() -> None:
    """As large as drawn ones; the unknown one's stays zero."""
    torch.manual_seed(1)
    network = Thacil(SHAPE)
    initialise(network, "principal", features(), ALL)
    weight = network.category_embedding.weight.detach()

    torch.testing.assert_close(weight[:6] @ weight[:6].T, 0.08 * torch.eye(6))
    assert not weight[6].any()


def test_what_is_wider_than_the_contents_is_drawn() -> None:
    """No row of the projection is left without weights."""
    torch.manual_seed(1)
    network = Thacil(
        ThacilShape(feature_dim=12, num_categories=60, item_dim=16, category_dim=8, num_heads=2)
    )
    initialise(network, "principal", features(), ALL)

    assert (network.item_projection.weight.norm(dim=1) > 0.01).all()
    assert 0.05 < float(network.category_embedding.weight[:60].detach().std()) < 0.2


@pytest.mark.parametrize("name", ["atrank", "bpr", "lstm", "lstm_attention", "mean_pooling", "ncf"])
def test_baselines_begin_with_the_same_videos(name: str) -> None:
    """A start is no advantage of one model."""
    torch.manual_seed(1)
    network = build_baseline(
        name, thacil=lambda: Thacil(SHAPE), num_users=3, dropout=0.0, hidden_dropout=0.0
    )
    initialise(network, "principal", features(), ALL)

    expected = 0.1 * principal_directions(features(), ALL, 4)
    np.testing.assert_array_equal(network.embed.item_projection.weight.detach(), expected)


@pytest.mark.parametrize("how", ["plain", "reference"])
def test_other_starts_do_not_look_at_the_contents(how: Start) -> None:
    """The same numbers whatever they are."""
    found = []
    for contents in (features(), np.zeros((1, 12), np.float32)):
        torch.manual_seed(1)
        network = Thacil(SHAPE)
        initialise(network, how, contents, ALL[:1])
        found.append(network.item_projection.weight.detach())

    assert torch.equal(*found)
