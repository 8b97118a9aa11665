"""The networks, one file each, and the sizes that make them comparable.

What the training loop, ``evaluate`` and the export ask of a network: ``embed(features, categories)``
and a ``forward``. Those that read a history have ``profile(clicks_ULD, lengths_U)``, which does not
know the candidate, and score candidates against it; those that know users by id
(:data:`PERSONAL_MODELS`) take the ids in place of a history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from training.layers import VideoEmbedding
from training.models.atrank import AtRank
from training.models.bpr import Bpr
from training.models.lstm import Lstm
from training.models.lstm_attention import LstmAttention
from training.models.mean_pooling import MeanPooling
from training.models.ncf import Ncf
from training.models.thacil import Thacil

PERSONAL_MODELS = frozenset({"bpr", "ncf"})

PersonalNetwork: TypeAlias = Bpr | Ncf
HistoryNetwork: TypeAlias = Thacil | MeanPooling | Lstm | LstmAttention | AtRank
Network: TypeAlias = HistoryNetwork | PersonalNetwork

_Sized = TypeVar("_Sized", bound=nn.Module)


def build_baseline(
    name: str,
    *,
    thacil: Callable[[], Thacil],
    num_users: int,
    dropout: float,
    hidden_dropout: float,
) -> Network:
    """Build a baseline as wide as a THACIL network, untrained.

    Args:
        name: a model other than ``thacil``.
        thacil: builds the network to be compared with: its sizes are taken, and the LSTMs' state
            is chosen so that they have as many parameters as it has.
        num_users: users of the training log, for models that know users by id.
        dropout: the reference's dropout, on attention, hidden layers and the logit.
        hidden_dropout: on hidden layers of the head only.
    """
    with torch.device("meta"):
        peer = thacil()
    shape = peer.shape
    rates = {"dropout": dropout, "hidden_dropout": hidden_dropout}

    def embed() -> VideoEmbedding:
        return VideoEmbedding(
            shape.feature_dim,
            num_categories=shape.num_categories,
            item_dim=shape.item_dim,
            category_dim=shape.category_dim,
        )

    width, target = shape.hidden_dim, count_parameters(peer)
    match name:
        case "mean_pooling":
            return MeanPooling(embed(), hidden_dim=width, **rates)
        case "lstm":
            return _as_large(
                lambda dim: Lstm(embed(), lstm_dim=dim, hidden_dim=width, **rates), target
            )
        case "lstm_attention":
            return _as_large(
                lambda dim: LstmAttention(embed(), lstm_dim=dim, hidden_dim=width, **rates), target
            )
        case "atrank":
            return AtRank(embed(), num_heads=shape.num_heads, hidden_dim=width, **rates)
        case "bpr":
            return Bpr(embed(), num_users=num_users)
        case "ncf":
            return Ncf(embed(), num_users=num_users, hidden_dim=width, **rates)
        case _:
            raise ValueError(f"there is no model {name!r}")


def count_parameters(network: nn.Module) -> int:
    """Count the trained numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _as_large(build: Callable[[int], _Sized], target: int) -> _Sized:
    """Build with the width whose parameter count is nearest to the target."""

    def excess(dim: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(dim)) - target

    low, high = 1, 2
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return build(min((low, high), key=lambda dim: abs(excess(dim))))
