"""Histories of like length together: of a batch padded to its longest one, most is padding.

Every user begins without a click and few have the most that is seen, so that in a batch of a
whole log the mean is a third of the longest. Networks that look at every place of a history do
three times the work that there is, and attention between places more than that.

U histories  N impressions  L history length
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_PARTS = 4
_WORTH_IT = 64


class Part(NamedTuple):
    """Some histories of a batch, and the impressions that see them.

    Attributes:
        users: [U'], index into the histories.
        longest: of them, in clicks.
        rows: [N'], index into the impressions.
        user: [N'], for each of these impressions its place in ``users``.
    """

    users: Tensor
    longest: int
    rows: Tensor
    user: Tensor


def logits_by_length(
    lengths_U: Tensor, user_N: Tensor, logits_of: Callable[[Part], Tensor]
) -> Tensor:
    """Score impressions part by part: logits [N], in their own order.

    Args:
        lengths_U: clicks of each history.
        user_N: for each impression its history.
        logits_of: scores the impressions of a part.
    """
    parts = list(parts_of(lengths_U, user_N))
    logits = torch.cat([logits_of(part) for part in parts])
    return logits.index_select(0, torch.argsort(torch.cat([part.rows for part in parts])))


def parts_of(lengths_U: Tensor, user_N: Tensor) -> Iterator[Part]:
    """Cut histories into parts of like length; few histories stay together."""
    order_U = torch.argsort(lengths_U, stable=True)
    place_U = torch.argsort(order_U)
    size = -(-len(order_U) // (_PARTS if len(order_U) >= _WORTH_IT else 1))
    place_N = place_U.index_select(0, user_N)
    for start in range(0, len(order_U), size):
        users = order_U[start : start + size]
        rows = torch.nonzero((place_N >= start) & (place_N < start + size)).squeeze(1)
        longest = int(lengths_U.index_select(0, users[-1:]))
        yield Part(users, longest, rows, place_N.index_select(0, rows) - start)
