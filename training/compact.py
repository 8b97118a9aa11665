"""Exactly the same network, smaller: parts that add up are one, units that training left dead go.

A hidden unit of an additive attention is dead when its outgoing weights are zero (nobody hears
it) or its incoming weights are (it says the same for every position, which cancels in the
softmax over positions). A hidden unit of the feed-forward part is dead when its outgoing weight
is zero. Strong coupled decay, as in the reference training, kills most of them: in the
authors' released weights 6 of 128 units of the target attention are alive.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.layers import AdditiveAttention
from training.models.interaction import Interaction
from training.models.thacil import Thacil

DEAD = 1e-6
"""A unit is dead when all its weights are below this share of the largest of any unit."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How many units of a layer are left.

    Attributes:
        alive: units kept.
        total: units trained.
    """

    alive: int
    total: int


def folded(network: Thacil) -> Thacil:
    """Return a copy in which the head's likeness of user and candidate is one plain layer."""
    copied = copy.deepcopy(network)
    if copied.interaction is not None:
        whole = torch.ones(network.shape.hidden_dim, dtype=torch.bool)
        copied.interaction = _rows(copied.interaction, whole)
    return copied


def compact(network: Thacil) -> tuple[Thacil, dict[str, Kept]]:
    """Return a copy without dead units, and what was kept where. Live units stay as they are."""
    small = folded(network).eval()
    kept = {}
    for name in ("target_attention", "item_attention", "category_attention"):
        attention: AdditiveAttention = getattr(small, name)
        alive = _alive_in_attention(attention)
        kept[name] = Kept(int(alive.sum()), len(alive))
        _keep_in_attention(attention, alive)
    alive = _above(small.output.weight.detach().abs()[0])
    kept["hidden"] = Kept(int(alive.sum()), len(alive))
    small.hidden = _rows(small.hidden, alive)
    if small.interaction is not None:
        small.interaction = _rows(small.interaction, alive)
    small.output = _columns(small.output, alive)
    return small, kept


def _alive_in_attention(attention: AdditiveAttention) -> Tensor:
    heard = _above(attention.score.weight.detach().abs().amax(dim=0))
    incoming = torch.cat([attention.value.weight, attention.query.weight], dim=1).detach()
    return heard & _above(incoming.abs().amax(dim=1))


def _above(sizes: Tensor) -> Tensor:
    alive = sizes > DEAD * sizes.max()
    if not alive.any():
        # A graph needs at least one unit.
        alive[0] = True
    return alive


def _keep_in_attention(attention: AdditiveAttention, alive: Tensor) -> None:
    attention.value = _rows(attention.value, alive)
    attention.query = _rows(attention.query, alive)
    attention.score = _columns(attention.score, alive)


def _rows(layer: nn.Linear | Interaction, alive: Tensor) -> nn.Linear:
    weight, bias = layer.weight.detach(), getattr(layer, "bias", None)
    smaller = nn.Linear(weight.shape[1], int(alive.sum()), bias=bias is not None)
    smaller.weight = nn.Parameter(weight[alive])
    if bias is not None:
        smaller.bias = nn.Parameter(bias.detach()[alive])
    return smaller


def _columns(layer: nn.Linear, alive: Tensor) -> nn.Linear:
    smaller = nn.Linear(int(alive.sum()), layer.out_features, bias=layer.bias is not None)
    smaller.weight = nn.Parameter(layer.weight.detach()[:, alive])
    if layer.bias is not None:
        smaller.bias = nn.Parameter(layer.bias.detach())
    return smaller
