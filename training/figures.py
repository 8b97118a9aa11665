"""The pictures of the reports, as SVG text that a page can hold."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_store import IntArray
from training.inspection import HISTORY_LENGTH, Distributions
from training.metrics import Reliability
from training.ranking import MEASURES, Doubles, TopK
from training.significance import Paired

# Okabe and Ito's palette, told apart by colour-blind readers too; the first is for the model
# that all others are held against.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a", "#222222")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_BAR = _COLOURS[0]
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#777777",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "fixed",
}
_TITLES = {"precision": "Precision", "recall": "Recall", "f_score": "F-score", "ndcg": "NDCG"}


@mpl.rc_context(_STYLE)
def distributions_svg(found: Distributions) -> str:
    """Draw the paper's Fig. 3, and how much history the test impressions have."""
    panels = 3 if len(found.test_history) else 2
    figure, axes = _panels(1, panels, height=2.9)
    _histogram(axes[0], found.clicks_per_user, "Clicks per user (Fig. 3a)", "users")
    order = np.sort(found.videos_per_category)[::-1]
    axes[1].bar(np.arange(len(order)), order, width=1.0, color=_BAR)
    axes[1].set(title="Videos per category (Fig. 3b)", xlabel="category, by size", ylabel="videos")
    if panels > 2:  # noqa: PLR2004  a third panel
        title = "Clicks before a test impression"
        _histogram(axes[2], found.test_history, title, "impressions")
    return _svg(figure)


@mpl.rc_context(_STYLE)
def curves_svg(curves: Mapping[str, TopK]) -> str:
    """Draw precision, recall, F and NDCG at K (Fig. 4): one line per model."""
    figure, axes = _panels(2, 2, height=6.0)
    for axis, measure in zip(axes, MEASURES, strict=True):
        for (label, lists), style in zip(curves.items(), _styles(len(curves)), strict=True):
            axis.plot(lists.cutoffs, getattr(lists, measure), label=label, **style)
        ticks = next(iter(curves.values())).cutoffs
        axis.set(title=_TITLES[measure], xlabel="K", xticks=ticks)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(curves))
    )
    return _svg(figure)


@mpl.rc_context(_STYLE)
def differences_svg(paired: Mapping[str, Paired], against: str) -> str:
    """Draw each model's difference to one of them, with its 95 % interval."""
    figure, (axis,) = _panels(1, 1, height=0.9 + 0.36 * len(paired))
    names = [f"{label} " for label in paired]
    for row, one in enumerate(paired.values()):
        apart = one.low > 0 or one.high < 0
        colour = (_COLOURS[2] if one.difference > 0 else _COLOURS[5]) if apart else _COLOURS[6]
        axis.plot([one.low, one.high], [row, row], color=colour, lw=2.5, solid_capstyle="round")
        axis.plot([one.difference], [row], "o", color=colour, ms=6)
    axis.axvline(0.0, color="#222222", lw=1)
    axis.set(
        yticks=range(len(paired)),
        yticklabels=names,
        xlabel=f"per-user AUC, difference to {against} (95 % bootstrap interval over users)",
    )
    axis.set_ylim(len(paired) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    return _svg(figure)


@mpl.rc_context(_STYLE)
def reliability_svg(before: Mapping[str, Reliability], after: Mapping[str, Reliability]) -> str:
    """Draw predicted against observed, without and with calibration."""
    figure, axes = _panels(1, 2, height=4.3)
    titles = ("As the network says", "Calibrated on validation")
    for axis, title, binned in zip(axes, titles, (before, after), strict=True):
        for (label, bins), style in zip(binned.items(), _styles(len(binned)), strict=True):
            thin = {**style, "ms": 3, "lw": style["lw"] * 0.7}
            axis.plot(bins.predicted, bins.observed, label=label, **thin)
        top = max(
            max(float(b.predicted.max()), float(b.observed.max()))
            for b in (*before.values(), *after.values())
        )
        axis.plot([0, top], [0, top], color="#222222", lw=1, ls=":")
        axis.set(
            title=title, xlabel="predicted probability", ylabel="share clicked", aspect="equal"
        )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(before))
    )
    return _svg(figure)


@mpl.rc_context(_STYLE)
def learning_svg(validation: Mapping[str, Sequence[Doubles]]) -> str:
    """Draw validation gAUC by epoch: a thin line per seed, of each model."""
    figure, (axis,) = _panels(1, 1, height=3.4)
    for (label, seeds), style in zip(validation.items(), _styles(len(validation)), strict=True):
        for place, values in enumerate(seeds):
            shown = {**style, "lw": 1.1, "label": None if place else label}
            axis.plot(np.arange(1, len(values) + 1), values, **shown)
    longest = max(len(values) for seeds in validation.values() for values in seeds)
    axis.set(xlabel="epoch", ylabel="validation gAUC", xticks=range(1, longest + 1))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


@mpl.rc_context(_STYLE)
def by_history_svg(names: Sequence[str], users: IntArray, auc: Mapping[str, Doubles]) -> str:
    """Draw mean per-user AUC by how many clicks a user has: names and users of each group."""
    figure, (axis,) = _panels(1, 1, height=3.4)
    places = np.arange(len(names))
    for (label, values), style in zip(auc.items(), _styles(len(auc)), strict=True):
        axis.plot(places, values, label=label, **style)
    ticks = [f"{name}\n{count:,} users" for name, count in zip(names, users, strict=True)]
    axis.set(xlabel="clicks in training", ylabel="per-user AUC", xticks=places, xticklabels=ticks)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def _histogram(axis: Axes, values: IntArray, title: str, counted: str) -> None:
    largest = int(values.max(initial=1))
    width = max(1, -(-largest // 40))
    edges = np.arange(0, largest + 2 * width, width) - 0.5
    axis.hist(values, bins=edges.tolist(), color=_BAR)
    axis.set(title=title, xlabel="clicks", ylabel=counted)
    if largest > HISTORY_LENGTH:
        axis.axvline(HISTORY_LENGTH, color=_COLOURS[5], lw=1.2)
        axis.annotate(
            f" {HISTORY_LENGTH} are seen",
            (HISTORY_LENGTH, 0.95),
            xycoords=("data", "axes fraction"),
            color=_COLOURS[5],
        )


def _styles(count: int) -> list[dict[str, Any]]:
    """Styles of lines; the first, which all others are held against, is thick and on top."""
    return [
        {
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "ms": 4.5,
            "lw": 1.5 if place else 2.6,
            "zorder": 2 if place else 3,
        }
        for place in range(count)
    ]


def _panels(rows: int, columns: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.6, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _svg(figure: Figure) -> str:
    """Render without what would differ from run to run."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
