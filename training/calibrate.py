"""From scores to probabilities: a straight line through the logits, fitted on validation.

Two steps, both monotone, so that no ranking changes. The prior correction undoes the sampling of
negatives, whose share is known. The Platt step then fits slope and intercept to what was clicked in
the validation split, which is all impressions of its videos, none sampled away.

A line rather than isotonic regression: steps would tie candidates that the model tells apart, and a
line folds into the exported graph.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model_store import FloatArray
from training.config import RunConfig
from training.errors import ConfigError, DataError
from training.evaluate import score, validation_examples
from training.fit import load_run
from training.interactions import ClickLog, Impressions
from training.metrics import evaluate_scores, probability
from training.processes import scoring_device
from training.ranking import Doubles, Floats
from training.shards import Shards
from training.user_counts import UserCounts

_FILE = "calibration.json"
_NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """The line that makes a logit calibrated: ``slope * (logit + prior_shift) + intercept``.

    Attributes:
        prior_shift: log of the share of negatives that training kept; 0 when it kept all, or
            learnt from pairs alone.
        slope: above 0, so that the ranking stays; below 1 it takes back over-confidence.
        intercept: what is left of the base rate.
    """

    prior_shift: float = 0.0
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def offset(self) -> float:
        """What is added to ``slope * logit``."""
        return self.slope * self.prior_shift + self.intercept

    def apply(self, logits: FloatArray) -> FloatArray:
        """Calibrate logits, in single precision as the exported graph does."""
        line = np.float32(self.slope) * logits + np.float32(self.offset)
        return line.astype(np.float32)


UNCALIBRATED = Calibration()


def calibrate(run: Path, log: ClickLog) -> Calibration:
    """Fit a run's calibration on the validation split it was trained beside, and save it.

    Writes ``calibration.json`` with the line, the metrics of validation before and after, and
    which weights it belongs to. A run that has one for its present weights keeps it.

    Raises:
        ConfigError: the run holds no trained network.
        DataError: the validation split lacks clicks or non-clicks.
    """
    config, network = load_run(run)
    path, weights = run / _FILE, _digest(run / "best.pt")
    if path.exists() and json.loads(path.read_text())["weights"] == weights:
        return load_calibration(run)
    log, _ = log.indexed()
    shards = Shards(config, log)
    validates = shards.validates
    network.to(scoring_device(config.execution.device))
    logits = score(network, validation_examples(config, log, validates, shards.split.held))
    fitted = fit_line(validates.labels, logits, prior_shift=prior_shift(config, shards.learns()))
    before, after = (
        evaluate_scores(validates.user_ids, validates.labels, scores)
        for scores in (logits, fitted.apply(logits))
    )
    saved = {**asdict(fitted), "weights": weights, "before": before, "after": after}
    path.write_text(json.dumps(saved, indent=2) + "\n")
    return fitted


def load_calibration(run: Path) -> Calibration:
    """Read a run's calibration; the identity where it has none.

    Raises:
        ConfigError: the file was fitted to other weights than the run's.
    """
    path = run / _FILE
    if not path.exists():
        return UNCALIBRATED
    saved = json.loads(path.read_text())
    if saved["weights"] != _digest(run / "best.pt"):
        raise ConfigError(
            f"{path} was fitted to other weights than {run / 'best.pt'}: "
            f"python -m training calibrate --run {run} --data DIR"
        )
    return Calibration(saved["prior_shift"], saved["slope"], saved["intercept"])


def prior_shift(config: RunConfig, learns: Iterable[Impressions]) -> float:
    """Log of the share of negatives that an epoch keeps, 0 or less.

    Dropping negatives multiplies the odds that a model learns by one over that share (King and
    Zeng 2001, prior correction). A loss over pairs learns no odds: whatever is added to a user's
    logits leaves it as it is. So nothing is shifted where pairs are the whole loss, in BPR or by
    ``optim.pairwise_share`` of 1; where they are a share of it, cross entropy alone decides how
    high logits lie, and the shift is the same.

    Args:
        config: of the run.
        learns: the impressions that it learns from.
    """
    ratio = config.data.negatives_per_positive
    if ratio is None or config.model == "bpr" or config.optim.pairwise_share == 1:
        return 0.0
    counts = UserCounts.of((part.user_ids, part.labels) for part in learns)
    clicks = int(counts.clicks.sum())
    kept, total = int(counts.drawn(ratio).sum()) - clicks, int(counts.shown.sum()) - clicks
    return math.log(kept / total) if kept else 0.0


def fit_line(labels: Floats, logits: Floats, *, prior_shift: float = 0.0) -> Calibration:
    """Fit slope and intercept by maximum likelihood (Platt 1999), by Newton's method.

    Labels are taken as (clicks + 1) / (clicks + 2) and 1 / (others + 2), as Platt does, so that a
    perfectly separated split still has a finite slope. Where the split ranks no better than
    chance, the slope stays 1 and only the base rate is fitted: a negative slope would turn every
    ranking around.

    Args:
        labels: [n], 1 for a click, else 0.
        logits: [n], as the network gives them.
        prior_shift: added to the logits first.

    Raises:
        DataError: clicks or non-clicks are missing, or a logit is not finite.
    """
    clicks, others = float((labels == 1).sum()), float((labels == 0).sum())
    if not clicks or not others:
        raise DataError(f"calibration needs clicks and non-clicks, got {clicks:.0f}, {others:.0f}")
    x = np.asarray(logits, np.float64) + prior_shift
    if not np.isfinite(x).all():
        raise DataError(f"{int((~np.isfinite(x)).sum())} of {len(x)} logits are not finite")
    target = np.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
    slope, intercept = _newton(x, target, fits_slope=True)
    if slope <= 0:
        slope, intercept = _newton(x, target, fits_slope=False)
    return Calibration(prior_shift, slope, intercept)


def _newton(x: Doubles, target: Doubles, *, fits_slope: bool) -> tuple[float, float]:
    """Minimise the convex cross entropy of ``slope * x + intercept``, halving steps that overshoot."""
    parameters = np.array([1.0, 0.0])
    design = np.stack([x, np.ones_like(x)])
    free = np.array([fits_slope, True])

    def loss(at: Doubles) -> float:
        z = at @ design
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    for _ in range(_NEWTON_STEPS):
        p = probability(parameters @ design)
        gradient = (design @ (p - target) / len(x))[free]
        curvature = ((design * (p * (1 - p))) @ design.T / len(x))[np.ix_(free, free)]
        # A little of the identity keeps constant logits solvable.
        step = np.zeros(2)
        step[free] = np.linalg.solve(curvature + 1e-12 * np.eye(len(gradient)), gradient)
        while loss(parameters - step) > loss(parameters) and np.abs(step).max() > 1e-12:  # noqa: PLR2004  below rounding
            step /= 2
        parameters = parameters - step
        if np.abs(step).max() < 1e-10:  # noqa: PLR2004  converged
            break
    return float(parameters[0]), float(parameters[1])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
