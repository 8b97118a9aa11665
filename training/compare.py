"""Several models under one protocol: trained, scored, measured and held against one of them.

Every contender of a seed learns from the same rows, is stopped and calibrated on the same
validation rows, and scores the same test rows. What is finished is never done again: a second call
with more models or seeds does only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from model_store import FloatArray, IntArray
from training.attention import attention_deviation
from training.calibrate import calibrate
from training.config import MODELS, PRESETS, RunConfig, load_config
from training.errors import ConfigError, DataError
from training.evaluate import measure, score, test_examples
from training.fit import fit, load_run
from training.inspection import clicks_of_users
from training.interactions import ClickLog, Impressions
from training.metrics import Reliability, reliability, user_auc
from training.models import count_parameters
from training.processes import Processes, device_of, scoring_device
from training.ranking import CUTOFFS, MEASURES, Convention, Doubles, TopK, top_k
from training.significance import Paired, compare_paired, holm

CONVENTIONS: tuple[Convention, ...] = ("standard", "reference")

_HISTORY_BOUNDS = (0, 1, 5, 20, 80, 160)
_FEW_USERS = 20
_ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Contender:
    """A model with the configuration it is trained by.

    Attributes:
        label: as it was asked for: ``thacil``, ``thacil@paper``, ``thacil@wide.toml``.
        config: of the first seed.
    """

    label: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One trained and scored network.

    Attributes:
        seed: of weights, order and validation split.
        best_epoch: the one whose weights are scored.
        validation: gAUC after each epoch.
        metrics: of the test file, calibrated.
        uncalibrated: the same of the network's own logits.
        attention: deviation from uniform by attention; empty where the model is not THACIL.
        user_auc: [users], of test users with both classes, ascending by id.
    """

    seed: int
    best_epoch: int
    validation: tuple[float, ...]
    metrics: Mapping[str, float]
    uncalibrated: Mapping[str, float]
    attention: Mapping[str, float]
    user_auc: Doubles


@dataclass(frozen=True, slots=True)
class Result:
    """A contender over all its seeds.

    Attributes:
        contender: which.
        parameters: trained numbers of the network.
        seeds: one each.
        lists: top-K averages by convention, mean over seeds.
        before: predicted against observed of all seeds together, as the networks say.
        after: the same, calibrated.
    """

    contender: Contender
    parameters: int
    seeds: tuple[SeedResult, ...]
    lists: Mapping[Convention, TopK]
    before: Reliability
    after: Reliability

    @property
    def user_auc(self) -> Doubles:
        """Per-user AUC, mean over seeds: [users]."""
        mean: Doubles = np.mean([one.user_auc for one in self.seeds], axis=0)
        return mean

    def mean(self, metric: str) -> float:
        """Mean of a test metric over seeds."""
        return float(np.mean([one.metrics[metric] for one in self.seeds]))

    def spread(self, metric: str) -> float:
        """Standard deviation of a test metric over seeds; NaN for one seed."""
        values = [one.metrics[metric] for one in self.seeds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True, slots=True)
class Difference:
    """A contender against the one that all are held against.

    Attributes:
        user_auc: plain mean over users (eq. 11).
        gauc: weighted by impressions.
        p_holm: of the first, adjusted for the number of contenders.
    """

    user_auc: Paired
    gauc: Paired
    p_holm: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found.

    Attributes:
        against: label of the contender that all others are held against.
        results: by label, that one first.
        differences: by label, of all others.
        users: ids of test users with both classes, ascending.
        impressions: [users], each one's test impressions.
        clicks: [users], each one's training clicks.
    """

    against: str
    results: Mapping[str, Result]
    differences: Mapping[str, Difference]
    users: IntArray
    impressions: IntArray
    clicks: IntArray


def contenders(
    names: Sequence[str], *, preset: str = "modern", overrides: Path | None = None
) -> list[Contender]:
    """Read contenders as typed: ``MODEL``, ``MODEL@PRESET`` or ``MODEL@FILE.toml``.

    Args:
        names: at least one, all different.
        preset: of those that name none.
        overrides: TOML of departures from the preset, of those that name no file.

    Raises:
        ConfigError: an unknown model, preset or key, or a name twice; all faults at once.
    """
    faults = [f"{name!r} is named twice" for name in sorted(set(names)) if names.count(name) > 1]
    found = []
    for name in names:
        model, _, variant = name.partition("@")
        if model not in MODELS:
            faults.append(f"there is no model {model!r}, there are {', '.join(MODELS)}")
            continue
        file = Path(variant) if variant.endswith(".toml") else overrides
        chosen = variant if variant and not variant.endswith(".toml") else preset
        if chosen not in PRESETS:
            faults.append(f"{name}: there is no preset {chosen!r}, there are {', '.join(PRESETS)}")
            continue
        label = f"{model}@{Path(variant).name}" if variant else model
        try:
            found.append(
                Contender(label, load_config(chosen, overrides=file, top={"model": model}))
            )
        except ConfigError as exc:
            faults.append(f"{name}: {exc}")
    labels = [one.label for one in found]
    faults += [
        f"two contenders would be called {label}: rename a file"
        for label in sorted(set(labels))
        if labels.count(label) > 1 and names.count(label) < 2  # noqa: PLR2004  twice is told above
    ]
    if faults or not found:
        raise ConfigError("\n".join(faults or ["no model is named"]))
    return found


def compare(
    field: Sequence[Contender],
    log: ClickLog,
    out: Path,
    *,
    seeds: int,
    against: str | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Train and score what is not yet, and compare everything.

    Args:
        field: who takes part.
        log: with a test half.
        out: gets ``runs/LABEL/seed-N``, each a run directory of its own.
        seeds: of each contender, counted from 1.
        against: label that the others are held against; the first ``thacil`` when not given.
        cutoffs: K of the top-K measures.
        say: told of each step.

    Raises:
        ConfigError: ``against`` takes no part, or ``out`` holds other runs.
        DataError: the log has no test half, or no user with both classes in it.
    """
    test = log.test
    if test is None:
        raise DataError("the log has no test_data.csv: nothing to compare on")
    first = _opponent(field, against)
    users = user_auc(test.user_ids, test.labels, np.zeros(len(test)))
    if not len(users.users):
        raise DataError("no test user has both clicked and other impressions: nothing to rank")
    results = {}
    for one in sorted(field, key=lambda c: c.label != first):
        say(f"{one.label}")
        results[one.label] = _run(one, log, test, out, seeds=seeds, cutoffs=cutoffs, say=say)
    return Comparison(
        against=first,
        results=results,
        differences=_differences(results, first, users.impressions),
        users=users.users,
        impressions=users.impressions,
        clicks=clicks_of_users(log.train, users.users),
    )


def by_history(found: Comparison) -> tuple[list[str], IntArray, dict[str, Doubles]]:
    """Group users by training clicks: names, users of each group, mean AUC by label.

    Groups of fewer than 20 users are left out: their mean says nothing.
    """
    bounds = np.array(_HISTORY_BOUNDS)
    group = np.searchsorted(bounds, found.clicks, side="right") - 1
    users = np.bincount(group, minlength=len(bounds))
    kept = np.flatnonzero(users >= _FEW_USERS)
    ends = [*(bounds[1:] - 1).tolist(), None]
    names = []
    for place in kept.tolist():
        low, high = int(bounds[place]), ends[place]
        names.append(f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}")
    totals = {
        label: np.bincount(group, one.user_auc, minlength=len(bounds))
        for label, one in found.results.items()
    }
    means: dict[str, Doubles] = {label: sums[kept] / users[kept] for label, sums in totals.items()}
    return names, users[kept], means


def departures(found: Comparison) -> dict[str, dict[str, JsonValue]]:
    """Say by label which settings, the model aside, differ from those of the one held against."""
    base = _flat(found.results[found.against].contender.config.model_dump(mode="json"))
    result = {}
    for label, one in found.results.items():
        own = _flat(one.contender.config.model_dump(mode="json"))
        result[label] = {
            key: value for key, value in own.items() if key != "model" and base[key] != value
        }
    return result


def _flat(tree: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for key, value in tree.items():
        below = (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat |= below
    return flat


def _opponent(field: Sequence[Contender], against: str | None) -> str:
    labels = [one.label for one in field]
    wanted = against or next((n for n in labels if n.partition("@")[0] == "thacil"), None)
    if wanted not in labels:
        raise ConfigError(
            f"{wanted or 'thacil'} takes no part: name it, or one of {', '.join(labels)} "
            f"with --against"
        )
    return wanted


def _run(
    one: Contender,
    log: ClickLog,
    test: Impressions,
    out: Path,
    *,
    seeds: int,
    cutoffs: Sequence[int],
    say: Callable[[str], None],
) -> Result:
    done, raw, calibrated, parameters = [], [], [], 0
    lists: dict[Convention, list[TopK]] = {convention: [] for convention in CONVENTIONS}
    for seed in range(1, seeds + 1):
        config = one.config.model_copy(update={"seed": seed})
        run = out / "runs" / one.label / f"seed-{seed}"
        device = device_of(config.execution.device)
        progress = fit(config, log, run, Processes(device=device))
        line = calibrate(run, log)
        logits, attention, parameters = _scored(run, log, test)
        raw.append(logits)
        calibrated.append(line.apply(logits))
        done.append(
            SeedResult(
                seed=seed,
                best_epoch=progress.best_epoch,
                validation=tuple(entry["validation_gauc"] for entry in progress.history),
                metrics=measure(test, calibrated[-1]),
                uncalibrated=measure(test, logits),
                attention=attention,
                user_auc=user_auc(test.user_ids, test.labels, calibrated[-1]).auc,
            )
        )
        for convention, each in lists.items():
            each.append(
                top_k(
                    test.user_ids,
                    test.labels,
                    calibrated[-1],
                    cutoffs=cutoffs,
                    convention=convention,
                )
            )
        say(f"  seed {seed}: per-user AUC {done[-1].metrics['user_auc']:.4f}")
    labels = np.tile(test.labels, seeds)
    return Result(
        contender=one,
        parameters=parameters,
        seeds=tuple(done),
        lists={convention: _mean_lists(each) for convention, each in lists.items()},
        before=reliability(labels, np.concatenate(raw)),
        after=reliability(labels, np.concatenate(calibrated)),
    )


def _scored(
    run: Path, log: ClickLog, test: Impressions
) -> tuple[FloatArray, dict[str, float], int]:
    """Score the test file and measure attention, or read what these weights gave before."""
    config, network = load_run(run)
    digest = hashlib.sha256((run / "best.pt").read_bytes())
    features = np.zeros(0) if log.test_features is None else log.test_features
    for column in (test.user_ids, test.item_ids, test.labels, test.timestamps_ms, features):
        for begin in range(0, len(column), _ROWS_PER_CHUNK):
            digest.update(column[begin : begin + _ROWS_PER_CHUNK].tobytes())
    stamp, saved = run / "test_logits.sha256", run / "test_logits.npy"
    seen = run / "test_attention.json"
    fresh = stamp.exists() and saved.exists() and stamp.read_text() == digest.hexdigest()
    if not (fresh and seen.exists()):
        network.to(scoring_device(config.execution.device))
        # Written last: what has a stamp is whole.
        stamp.unlink(missing_ok=True)
        if not fresh:
            np.save(saved, score(network, test_examples(config, log, test)))
        seen.write_text(json.dumps(attention_deviation(network, config, log, test)))
        stamp.write_text(digest.hexdigest())
    logits: FloatArray = np.load(saved)
    return logits, json.loads(seen.read_text()), count_parameters(network)


def _mean_lists(each: Sequence[TopK]) -> TopK:
    means = (np.mean([getattr(one, name) for one in each], axis=0) for name in MEASURES)
    return TopK(each[0].cutoffs, *means)


def _differences(
    results: Mapping[str, Result], against: str, impressions: IntArray
) -> dict[str, Difference]:
    base = results[against].user_auc
    others = {label: one.user_auc for label, one in results.items() if label != against}
    plain = [compare_paired(auc, base) for auc in others.values()]
    weighted = [
        compare_paired(auc, base, weights=impressions.astype(np.float64)) for auc in others.values()
    ]
    adjusted = holm([one.p_value for one in plain])
    parts = zip(plain, weighted, adjusted, strict=True)
    return {label: Difference(*three) for label, three in zip(others, parts, strict=True)}
