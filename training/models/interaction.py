"""How alike user and candidate are, for the head.

Differs from the paper, where asked for. There the head sees user and candidate side by side, and has
to build their likeness from sums and ReLUs. Here it sees their product too, feature by feature, and
the two sums of it that say how alike they are in their contents and in their categories.

N pairs  D = Df + Dc embedding  E hidden units
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_LIKENESS_SCALE: Final = 10.0
"""Under ``modern`` users and videos begin a tenth of unit size, their likeness far below one."""


class Interaction(nn.Module):
    """What each hidden unit makes of u * x.

    A weight for every feature says it all; those of the two sums only add to it, and are folded into
    it at export. But what is the same for all features is found at once by one weight, and late, one
    feature after another, by 64.

    Args:
        item_dim: Df.
        category_dim: Dc.
        hidden_dim: E.
    """

    def __init__(self, item_dim: int, category_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self._widths = (item_dim, category_dim)
        self.product = nn.Linear(item_dim + category_dim, hidden_dim, bias=False)
        self.likeness = nn.Linear(len(self._widths), hidden_dim, bias=False)

        self.register_load_state_dict_pre_hook(_unfold)  # type: ignore[no-untyped-call]  # torch has no types for it

    @property
    def weight(self) -> Tensor:
        """[E, D], of every feature of the product."""
        of_sums = self.likeness.weight.split(1, dim=1)
        wide = [one.expand(-1, width) for one, width in zip(of_sums, self._widths, strict=True)]
        return self.product.weight + _LIKENESS_SCALE * torch.cat(wide, dim=1)

    def forward(self, product_ND: Tensor) -> Tensor:
        """Weigh products of user and candidate: [N, D] -> [N, E]."""
        return functional.linear(product_ND, self.weight)


def _unfold(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Take one folded weight, too, as older runs and folded networks have it: the sums add nothing."""
    folded = state.pop(f"{prefix}weight", None)
    if folded is not None and isinstance(module, Interaction):
        state[f"{prefix}product.weight"] = folded
        state[f"{prefix}likeness.weight"] = torch.zeros_like(module.likeness.weight)
