"""The weights that training begins with."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model_store import IntArray
from training.features import Features
from training.models import Network
from training.models.thacil import Thacil

Start = Literal["principal", "plain", "reference"]

_EMBEDDING_SCALE: Final = 0.1
_VIDEOS: Final = 16_384
"""Looked at for principal directions: far more than there are directions."""
_LEAST_VARIANCE: Final = 1e-3
"""Of the largest one; a direction with less than that is not made as large as the others."""


def initialise(network: Network, how: Start, features: Features, videos: IntArray) -> None:
    """Fill a network with weights to begin with, by torch's random numbers.

    ``plain``: Glorot's kernels, embeddings and THACIL's profiles a tenth of unit size.
    ``principal``: the same, but that from the first step on videos are as unlike as their contents
    are: the projection begins with the principal directions of the content features, each equally
    large, and the categories' vectors begin orthogonal, as far as there is room: up to Dc of them.
    ``reference``: as the reference code: Glorot, also for gain and bias of the norm.

    Args:
        network: of any kind.
        how: see above.
        features: [any, F], contents of videos.
        videos: ascending, rows of them that may be looked at.
    """
    for name, parameter in network.named_parameters():
        # Recurrent kernels hold four gates: PyTorch's own start knows their fan-in.
        if parameter.dim() > 1 and "embedding" not in name and "lstm" not in name:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") and "norm" not in name:
            nn.init.zeros_(parameter)
    if isinstance(network, Thacil):
        _start_vectors(network, how)
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            if how != "reference" or "category" not in name:
                # N(0, 1), PyTorch's default, would drown the projected features at the start.
                nn.init.normal_(module.weight, std=_EMBEDDING_SCALE)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
    if how == "principal":
        embed = network if isinstance(network, Thacil) else network.embed
        _start_projection(embed.item_projection.weight, features, videos)
        _start_categories(embed.category_embedding.weight)


def principal_directions(
    features: Features, videos: IntArray, count: int, *, most: int = _VIDEOS
) -> npt.NDArray[np.float32]:
    """Return the directions in which contents lie farthest from zero: [count or fewer, F].

    None where there are no videos, or all contents are zero.

    A direction is as long as makes the contents' root mean square along it 1, or less where there is
    next to nothing.

    Args:
        features: [any, F], contents of videos.
        videos: ascending, rows of them that may be looked at.
        count: directions at most; there are no more than F.
        most: videos looked at, from all over those.
    """
    places = np.linspace(0, len(videos) - 1, min(most, len(videos))).astype(np.int64)
    sample = np.asarray(features[videos[places]], np.float64)
    square, direction = np.linalg.eigh(sample.T @ sample / max(1, len(sample)))
    square, direction = square[::-1][:count], direction[:, ::-1][:, :count]
    if not square[0] > np.finfo(np.float32).tiny:
        return np.zeros((0, direction.shape[0]), np.float32)
    least = _LEAST_VARIANCE * square[0]
    return (direction / np.sqrt(np.maximum(square, least))).T.astype(np.float32)


@torch.no_grad()
def _start_projection(weight_KF: torch.Tensor, features: Features, videos: IntArray) -> None:
    directions = torch.from_numpy(principal_directions(features, videos, len(weight_KF)))
    # Of what is wider than the contents the rest stays as it was drawn.
    weight_KF[: len(directions)] = _EMBEDDING_SCALE * directions


@torch.no_grad()
def _start_categories(weight_CD: torch.Tensor) -> None:
    # The last one is the unknown category's.
    known = weight_CD[:-1]
    nn.init.orthogonal_(known, gain=_EMBEDDING_SCALE * max(known.shape) ** 0.5)


def _start_vectors(network: Thacil, how: Start) -> None:
    if how != "reference":
        # A profile as large as the videos that it is held against, not ten times that: at full
        # size what a few clicks have by chance is learnt first.
        nn.init.constant_(network.norm.weight, _EMBEDDING_SCALE)
        return
    for vector in (network.norm.weight, network.norm.bias, network.self_attention.bias):
        bound = (3.0 / len(vector)) ** 0.5
        nn.init.uniform_(vector, -bound, bound)
