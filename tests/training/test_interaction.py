"""The likeness of user and candidate, in parts and folded into one."""

from __future__ import annotations

import torch

from training.compact import compact, folded
from training.models.interaction import Interaction
from training.models.thacil import Thacil, ThacilShape

SHAPE = ThacilShape(
    feature_dim=6, num_categories=5, item_dim=8, category_dim=4, num_heads=4, num_blocks=3,
    block_size=4, hidden_dim=12, interaction=True,
)  # fmt: skip


def test_it_is_the_product_and_its_two_sums() -> None:
    """Over the content's features and over the category's, ten times as large."""
    torch.manual_seed(0)
    net, product = Interaction(8, 4, 12), torch.randn(7, 12)
    sums = torch.stack([product[:, :8].sum(dim=1), product[:, 8:].sum(dim=1)], dim=1)

    torch.testing.assert_close(net(product), net.product(product) + net.likeness(10 * sums))


def test_export_folds_it_into_one_layer() -> None:
    """Which has no parts left, and says the same."""
    torch.manual_seed(0)
    network = Thacil(SHAPE)
    small, _ = compact(network)
    product = torch.randn(7, 12)

    assert isinstance(network.interaction, Interaction)
    assert isinstance(small.interaction, torch.nn.Linear)
    torch.testing.assert_close(small.interaction(product), network.interaction(product))


def test_both_parts_learn() -> None:
    """A step of gradient reaches the products and the sums."""
    torch.manual_seed(0)
    net = Interaction(8, 4, 12)
    net(torch.randn(7, 12)).square().sum().backward()

    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in net.parameters()
    )


def test_one_folded_weight_is_taken_for_the_products() -> None:
    """As runs of before have it, and networks that were folded: the same answers."""
    torch.manual_seed(0)
    network, product = Thacil(SHAPE), torch.randn(7, 12)
    other = Thacil(SHAPE)
    other.load_state_dict(folded(network).state_dict())
    assert network.interaction is not None
    assert other.interaction is not None

    torch.testing.assert_close(other.interaction(product), network.interaction(product))
