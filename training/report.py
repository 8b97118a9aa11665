"""What a comparison found, as a page, as JSON and as lines for a terminal."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.attention_report import (
    HOW_TO_READ,
    Measured,
    attention_parts,
    attention_rows,
    attention_verdict,
)
from training.compare import CONVENTIONS, Comparison, Difference, by_history, departures
from training.figures import (
    by_history_svg,
    curves_svg,
    differences_svg,
    learning_svg,
    reliability_svg,
)
from training.inspection import Distributions, LogSummary
from training.inspection_report import inspection_parts
from training.metrics import RELIABILITY_BINS
from training.page import folded, glossary, heading, page, paragraph, picture, table

_SIGNIFICANT = 0.05
_TITLES = {
    "thacil": "THACIL",
    "mean_pooling": "mean pooling",
    "lstm": "LSTM",
    "lstm_attention": "LSTM + attention",
    "atrank": "ATRank",
    "ncf": "NCF",
    "bpr": "BPR",
}
_TABLE = (
    "model",
    "parameters",
    "AUC per user",
    "gAUC",
    "difference in AUC per user",
    "p",
    "p, Holm",
)
_PROBABILITIES = (
    ("log_loss", "log loss"),
    ("ece", "ECE"),
    ("predicted_over_observed", "pred. / obs."),
)
_GLOSSARY = {
    "AUC per user": """The paper's eq. 11: for each test user with clicked and other impressions,
        the share of (clicked, other) pairs in which the clicked one scores higher, ties counting
        half; the plain mean over users, then over seeds, with the standard deviation over seeds.""",
    "gAUC": "The same, users weighted by their test impressions: what the reference code reports.",
    "log loss": "Mean negative log likelihood of the labels in nats, all test impressions.",
    "ECE": """Expected calibration error: mean distance of predicted to observed click share over
        20 bins of equally many impressions. 0 is best.""",
    "predicted / observed": "Predicted clicks over clicks. 1 is best.",
    "difference, p": """Paired over the same users, seeds averaged per user: the mean difference,
        its 95 % bootstrap interval (10,000 draws of users) and a two-sided paired t-test. Holm's p
        accounts for several models being held against the same one.""",
    "parameters": "Trained numbers, embeddings of users included where a model has them.",
}


def write_comparison(
    found: Comparison,
    summary: LogSummary,
    distributions: Distributions,
    out: Path,
    *,
    oracle: Mapping[str, float] | None = None,
) -> None:
    """Write ``report.html``, ``report.json`` and ``user_auc.csv``, a column per model.

    Args:
        found: the comparison.
        summary: of the log it was made on.
        distributions: of the same.
        out: the directory.
        oracle: figures of the best possible model, where the log is synthetic.
    """
    text = json.dumps(comparison_json(found, summary, oracle or {}), indent=2)
    (out / "report.json").write_text(text + "\n")
    (out / "report.html").write_text(comparison_page(found, summary, distributions, oracle or {}))
    columns = [found.users, *(one.user_auc for one in found.results.values())]
    np.savetxt(
        out / "user_auc.csv",
        np.stack(columns, axis=1),
        fmt=["%d", *["%.6f"] * len(found.results)],
        delimiter=",",
        header=",".join(["user_id", *found.results]),
        comments="",
    )


def comparison_json(
    found: Comparison, summary: LogSummary, oracle: Mapping[str, float]
) -> dict[str, Any]:
    """Everything that the page shows, for programs; no number is rounded."""
    return _finite(
        {
            "against": found.against,
            "versions": _versions(),
            "oracle": dict(oracle),
            "data": asdict(summary),
            "models": {
                label: {
                    "config": one.contender.config.model_dump(mode="json", exclude={"seed"}),
                    "parameters": one.parameters,
                    "mean": {name: one.mean(name) for name in one.seeds[0].metrics},
                    "standard_deviation": {name: one.spread(name) for name in one.seeds[0].metrics},
                    "seeds": [
                        {k: v for k, v in asdict(s).items() if k != "user_auc"} for s in one.seeds
                    ],
                    "lists": {name: asdict(lists) for name, lists in one.lists.items()},
                    "reliability": {"before": asdict(one.before), "after": asdict(one.after)},
                }
                for label, one in found.results.items()
            },
            "differences": {label: asdict(one) for label, one in found.differences.items()},
        }
    )


def comparison_text(found: Comparison, oracle: Mapping[str, float]) -> str:
    """The tables and what follows from them, for a terminal."""
    ranking = _aligned([_TABLE, *_rows(found, oracle)])
    parts = [ranking, _aligned(_probability_rows(found)), [verdict(found)]]
    if measured := _attention(found):
        rows = _aligned(attention_rows(measured))
        parts.insert(2, [*rows, attention_verdict(measured), HOW_TO_READ])
    return "\n\n".join("\n".join(part) for part in parts)


def titled(label: str) -> str:
    """Name a contender for readers: ``thacil@paper`` is ``THACIL, paper``."""
    model, _, variant = label.partition("@")
    return f"{_TITLES[model]}, {variant.removesuffix('.toml')}" if variant else _TITLES[model]


def verdict(found: Comparison) -> str:
    """Say in words what the intervals and p-values allow to be said."""
    first, differences = titled(found.against), found.differences
    if not differences:
        return f"{first} stands alone: nothing to hold it against."
    groups: dict[str, list[str]] = {"behind": [], "ahead": [], "level": []}
    for label, one in differences.items():
        sure = one.p_holm < _SIGNIFICANT
        where = "level" if not sure else "ahead" if one.user_auc.difference > 0 else "behind"
        groups[where].append(titled(label))
    count = next(iter(differences.values())).user_auc.users
    said = []
    if groups["behind"]:
        said.append(f"is better than {_listed(groups['behind'])}")
    if groups["ahead"]:
        said.append(f"is worse than {_listed(groups['ahead'])}")
    if groups["level"]:
        said.append(f"cannot be told apart from {_listed(groups['level'])}")
    return (
        f"By AUC per user over {count:,} users, {first} {'; it '.join(said)} "
        f"(paired t-test, Holm-adjusted p < {_SIGNIFICANT})."
    )


def comparison_page(
    found: Comparison,
    summary: LogSummary,
    distributions: Distributions,
    oracle: Mapping[str, float],
) -> str:
    """The whole report as one HTML file, pictures included."""
    seeds = len(next(iter(found.results.values())).seeds)
    trained = "one seed each" if seeds == 1 else f"{seeds} seeds each"
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    made = f"{len(found.results)} models, {trained}; {datetime.now(UTC):%d %B %Y}, {versions}"
    parts = [
        paragraph(made, kind="soft"),
        paragraph(verdict(found), kind="lead"),
        table(_TABLE, _rows(found, oracle), marks_first=True),
    ]
    if found.differences:
        paired = {titled(label): one.user_auc for label, one in found.differences.items()}
        caption = (
            f"Right of the line is better than {titled(found.against)}; an interval that crosses it shows "
            f"no difference at this number of users."
        )
        parts.append(picture(differences_svg(paired, titled(found.against)), caption))
    parts += [*_list_parts(found, distributions), *_probability_parts(found, summary)]
    parts += [
        *attention_parts(_attention(found)),
        *_user_parts(found),
        *inspection_parts(summary, distributions),
        *_protocol(found),
    ]
    return page("Click-through models compared", parts)


def _rows(found: Comparison, oracle: Mapping[str, float]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for label, one in found.results.items():
        difference = found.differences.get(label)
        rows.append(
            (
                titled(label),
                f"{one.parameters:,}",
                _with_spread(one.mean("user_auc"), one.spread("user_auc")),
                _with_spread(one.mean("gauc"), one.spread("gauc")),
                *_difference_cells(difference),
            )
        )
    if {"oracle_auc", "oracle_gauc"} <= oracle.keys():
        best = [f"{oracle[name]:.4f}" for name in ("oracle_auc", "oracle_gauc")]
        rows.append(("best possible", "", *best, *[""] * (len(_TABLE) - 4)))
    return rows


def _difference_cells(one: Difference | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    pair = one.user_auc
    interval = f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
    return interval, _p(pair.p_value), _p(one.p_holm)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"  # noqa: PLR2004  three decimals


def _with_spread(mean: float, spread: float) -> str:
    return f"{mean:.4f}" if math.isnan(spread) else f"{mean:.4f} ± {spread:.4f}"


def _listed(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _list_parts(found: Comparison, distributions: Distributions) -> list[str]:
    captions = {
        "standard": "Standard convention: a list of K holds min(K, n) of a user's n impressions; "
        "plain mean over users with a click; NDCG over the best possible list.",
        "reference": "Convention of the authors' code: precision over K even where a user has fewer "
        "impressions; users weighted by impressions; NDCG over the best order of the hits that were "
        "made. Not comparable with the standard one.",
    }
    parts = [heading("Top of the list (Fig. 4)")]
    lengths = distributions.test_impressions_per_user
    first = next(iter(found.results.values())).lists["standard"].cutoffs
    if (share := float((lengths <= first[0]).mean())) > 0.5:  # noqa: PLR2004  most users
        parts.append(
            paragraph(
                f"{share:.0%} of the test users have at most {first[0]} impressions: the whole of "
                f"what they saw fits into the shortest list, so only the order inside it, which "
                f"NDCG sees, can differ. Shorter lists (--cutoffs 1,2,3,5,10) say more here."
            )
        )
    for convention in CONVENTIONS:
        curves = {titled(label): one.lists[convention] for label, one in found.results.items()}
        parts.append(picture(curves_svg(curves), captions[convention]))
    return parts


def _probability_rows(found: Comparison) -> list[tuple[str, ...]]:
    """The header, then each model's figures as the network says and calibrated."""
    rows = [("model", *(cell for _, title in _PROBABILITIES for cell in (title, "calibrated")))]
    for label, one in found.results.items():
        cells = []
        for name, _ in _PROBABILITIES:
            raw = float(np.mean([seed.uncalibrated[name] for seed in one.seeds]))
            cells += [f"{raw:.4f}", f"{one.mean(name):.4f}"]
        rows.append((titled(label), *cells))
    return rows


def _probability_parts(found: Comparison, summary: LogSummary) -> list[str]:
    rows = _probability_rows(found)
    before = {titled(label): one.before for label, one in found.results.items()}
    after = {titled(label): one.after for label, one in found.results.items()}
    caption = (
        "Test impressions of all seeds in 20 bins of equal size; on the dotted line a prediction "
        "means what it says."
    )
    return [
        heading("Probabilities"),
        paragraph(
            "Scores are calibrated by a line through the logits that is fitted to validation data "
            "and published with the network. It changes no ranking. " + _noise(summary)
        ),
        table(rows[0], rows[1:], marks_first=True),
        picture(reliability_svg(before, after), caption),
    ]


def _attention(found: Comparison) -> Measured:
    results = {titled(label): one for label, one in found.results.items()}
    measured = {title: [seed.attention for seed in one.seeds] for title, one in results.items()}
    return {title: seeds for title, seeds in measured.items() if any(seeds)}


def _noise(summary: LogSummary) -> str:
    """Say how large an ECE is by chance: each bin's share is a mean of so many coin tosses."""
    if summary.test is None:
        return ""
    share, count = summary.test.click_share, summary.test.impressions
    noise = math.sqrt(2 * share * (1 - share) * RELIABILITY_BINS / (math.pi * count))
    return f"Perfect probabilities would have an ECE of about {noise:.4f} on this test file."


def _user_parts(found: Comparison) -> list[str]:
    names, users, means = by_history(found)
    validation = {
        titled(label): [np.array(seed.validation) for seed in one.seeds]
        for label, one in found.results.items()
    }
    parts = [heading("Who gains, and when training stops")]
    if len(names) > 1:
        parts.append(
            picture(
                by_history_svg(
                    names, users, {titled(label): each for label, each in means.items()}
                ),
                "Mean AUC of the users with so many clicks in training; groups of fewer than 20 "
                "users are left out.",
            )
        )
    caption = (
        "gAUC on the validation split after each epoch, a line per seed. The best epoch's weights "
        "are scored. Splits differ between seeds, not between models."
    )
    return [*parts, picture(learning_svg(validation), caption)]


def _protocol(found: Comparison) -> list[str]:
    against = found.results[found.against].contender
    rows = [
        (titled(label), ", ".join(f"{key} = {value}" for key, value in settings.items()))
        for label, settings in departures(found).items()
        if settings
    ]
    said = "All share one configuration; network.interaction and block_age are THACIL's alone."
    same = [paragraph(said)] if not rows else [table(("model", "differs in"), rows)]
    return [
        heading("How it was done"),
        paragraph(
            "One protocol: for each seed all models learn from the same videos, are stopped "
            "by gAUC on the same validation videos, held out of training, and are calibrated on "
            "them. The test file is scored with the weights of the best epoch; nothing is chosen "
            "by it."
        ),
        *same,
        folded(
            f"Configuration of {titled(found.against)}",
            json.dumps(against.config.model_dump(mode="json", exclude={"seed"}), indent=2),
        ),
        heading("What the numbers are"),
        glossary(_GLOSSARY.items()),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "NumPy": np.__version__,
    }


def _finite(value: Any) -> Any:
    """Make arrays lists and what JSON has no number for nothing."""
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
