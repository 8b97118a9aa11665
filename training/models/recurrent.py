"""An LSTM over rows of clicks that histories share, for training.

A user's histories grow click by click, so the state after each click of one row is the state at the
end of another history. One pass over a row gives the states of all of them, where a pass for each
history would read the same clicks again and again.

It is exact for histories that begin where their row does. A history that has lost its oldest
clicks (more than L were made) starts from the state that the few clicks before it in its row
left, not from zero. Evaluation starts every history from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.thacil_shared import Windows


def shared_states(lstm: nn.LSTM, videos_VD: Tensor, windows: Windows, places_UP: Tensor) -> Tensor:
    """Run over every row once and pick states of histories: [U, P, K].

    Args:
        lstm: batch first.
        videos_VD: embedded videos.
        windows: the histories, U of them in G rows.
        places_UP: for each history the positions wanted, counted from its oldest click.
    """
    states_GWK, _ = lstm(functional.embedding(windows.clicks, videos_VD))
    width = windows.clicks.shape[1]
    inside_UP = (windows.first[:, None] + places_UP).clamp(max=width - 1)
    return functional.embedding(
        windows.group[:, None] * width + inside_UP, states_GWK.flatten(0, 1)
    )


def every_place(windows: Windows) -> Tensor:
    """Return the positions of the longest history, for each: [U, L]."""
    longest = max(1, int(windows.lengths.max()))
    columns = torch.arange(longest, device=windows.lengths.device)
    return columns.expand(len(windows.lengths), -1)
