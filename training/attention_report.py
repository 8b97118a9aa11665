"""What the attention of compared networks does, in a table and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.attention import ATTENTIONS, COLLAPSED, collapsed
from training.page import heading, paragraph, table

Measured = Mapping[str, Sequence[Mapping[str, float]]]
"""By a model's title, of each seed: deviation from uniform by attention."""

HOW_TO_READ = (
    f"How far attention weights are from uniform: the share of the weight that would have to move, "
    f"0 to 1. Below {COLLAPSED} an attention is a plain mean: it has collapsed, however good the AUC."
)


def attention_parts(models: Measured) -> list[str]:
    """The section of a page; nothing where no model has attention to measure."""
    if not models:
        return []
    header, *rows = attention_rows(models)
    said = paragraph(attention_verdict(models))
    return [heading("Attention"), paragraph(HOW_TO_READ), table(header, rows), said]


def attention_rows(models: Measured) -> list[tuple[str, ...]]:
    """The header, then each model's mean over seeds, with the lowest seed where there are several."""
    rows: list[tuple[str, ...]] = [("attention from uniform", *ATTENTIONS)]
    for title, seeds in models.items():
        rows.append((title, *(_cell([s[name] for s in seeds if name in s]) for name in ATTENTIONS)))
    return rows


def attention_verdict(models: Measured) -> str:
    """Name what has collapsed, in any seed."""
    said = []
    for title, seeds in models.items():
        dead = {name for one in seeds for name in collapsed(one)}
        if dead:
            said.append(f"{title} ({', '.join(name for name in ATTENTIONS if name in dead)})")
    return f"Collapsed: {'; '.join(said)}." if said else "None has collapsed."


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} (lowest {min(values):.4f})"
