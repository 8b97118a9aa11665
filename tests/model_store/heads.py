"""Heads of any size, what goes into them, and what comes out by the formula."""

from __future__ import annotations

import numpy as np

from model_store import FloatArray, HeadWeights

from .conftest import LAYOUT


def head(
    units: int,
    width: int,
    hidden: int,
    *,
    interacts: bool = False,
    seed: int = 0,
    scale: float = 0.5,
) -> HeadWeights:
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> FloatArray:
        return np.array(scale * rng.standard_normal(shape), np.float32)

    return HeadWeights(
        some(units, width),
        some(width, units),
        some(hidden, width),
        some(hidden if interacts else 0, width),
        some(hidden),
        some(),
    )


def inputs(
    weights: HeadWeights, blocks: int, count: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    units, width = weights.key.shape
    row = units + len(weights.hidden) + (width if len(weights.interaction) else 0)
    rng = np.random.default_rng(seed)
    profile = rng.standard_normal((blocks, width)).astype(np.float32)
    return profile, rng.standard_normal((count, row)).astype(np.float32)


def in_numpy(weights: HeadWeights, profile: FloatArray, rows: FloatArray) -> np.ndarray:
    """Equations 9 to 12 as :class:`HeadWeights` writes them, in double precision."""
    key, score, hidden, interaction, output = (
        getattr(weights, name).astype(np.float64)
        for name in ("key", "score", "hidden", "interaction", "output")
    )
    units, of_hidden = len(key), len(hidden)
    logits = []
    for row in rows.astype(np.float64):
        query, half, candidate = np.split(row, [units, units + of_hidden])
        heard = np.maximum(profile @ key.T + query, 0.0)
        weight = np.exp((heard - heard[0]) @ score.T)
        user = (weight * profile).sum(0) / weight.sum(0)
        before = hidden @ user + half
        if len(interaction):
            before = before + interaction @ (user * candidate)
        logits.append(output @ np.maximum(before, 0.0) + float(weights.bias))
    return np.array(logits)


WEIGHTS = head(1, LAYOUT.profile_dim, 3)
