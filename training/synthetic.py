"""A synthetic world with known click probabilities, written as a click log.

Every user has a few interests, each a category and a visual direction, which drift over time.
Clicks are drawn from a probability that is saved beside the log, so that the best possible AUC
(the oracle's) is known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
from tqdm import tqdm

from model_store import FloatArray, IntArray
from training.errors import DataError
from training.log_files import COLUMNS
from training.metrics import mean_auc, weighted_auc
from training.npy_file import NpyFile, map_npy

Doubles = npt.NDArray[np.float64]
_START_MS = 1_600_000_000_000
_SPAN_MS = 28 * 86_400_000
_MAX_INTERESTS = 6
# Spread of the logarithm of how much a user watches: some have clicked many times the usual.
_ACTIVITY_SPREAD = 0.6
_ROWS_PER_PIECE = 1 << 14
# Of a user's impressions this share is near an interest, as a feed would choose them.
_EXPLOIT_SHARE = 0.5
_BIAS, _CATEGORY_GAIN, _VISUAL_GAIN = -3.0, 5.0, 4.0


PARTS = ("train", "test")

FULL_SIZE = {
    "users": 10_986,
    "videos": 1_704_880,
    "interactions": 12_737_617,
    "categories": 512,
    "feature_dim": 512,
    "test_share": 0.29576,
    "test_video_share": 0.42226,
}
"""The sizes of MicroVideo-1.7M: 8.97 M training and 3.77 M test impressions, 985 k training videos."""


@dataclass(frozen=True, slots=True)
class WorldReport:
    """What was written.

    Attributes:
        train_rows: impressions of training videos.
        test_rows: impressions of test videos, all later.
        click_share: of all impressions.
        oracle_auc: per-user AUC (eq. 11) of the true probabilities on the test file.
        oracle_gauc: the same weighted by impressions.
    """

    train_rows: int
    test_rows: int
    click_share: float
    oracle_auc: float
    oracle_gauc: float


def synthesize(
    out: Path,
    *,
    users: int,
    videos: int,
    interactions: int,
    seed: int,
    categories: int = 32,
    feature_dim: int = 64,
    test_share: float = 0.2,
    test_video_share: float = 0.25,
) -> WorldReport:
    """Write a world in the MicroVideo-1.7M layout; the same arguments give the same bytes.

    Beside the log lie ``train_probability.npy`` and ``test_probability.npy`` (the true click
    probability of each row) and ``world.json`` (arguments and oracle). Features go to disk as they
    are made; in memory are about 150 bytes an interaction and 100 bytes per user and feature.

    Args:
        out: the log's directory.
        users: about so many appear.
        videos: of both halves of the log.
        interactions: impressions of both halves.
        seed: of everything.
        categories: of videos.
        feature_dim: F.
        test_share: the last part of the time, whose impressions are the test file.
        test_video_share: of the videos, those that only the test file knows.

    Raises:
        DataError: sizes or a seed of which no world can be made.
    """
    arguments = {key: value for key, value in locals().items() if key != "out"}
    _check(users, videos, interactions, categories, feature_dim, seed)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    first_test = int(videos * (1 - test_video_share))
    category, styles = _write_videos(
        rng, out, (first_test, videos - first_test), categories, feature_dim
    )
    user, moment = _moments(rng, users, interactions)
    is_test = moment >= 1 - test_share
    interests = _Interests(rng, users, categories, styles)
    video = _choose(rng, interests, user, moment, category, is_test, first_test)
    halves = list(zip(PARTS, (~is_test, is_test), (0, first_test), strict=True))
    probability = np.empty(interactions)
    for name, rows, first in halves:
        features = map_npy(out / f"{name}_cover_image_feature.npy")
        probability[rows] = interests.click_probability(
            user[rows], moment[rows], category[video[rows]], features, video[rows] - first
        )
    label = (rng.random(interactions) < probability).astype(np.int64)
    times = _START_MS + (moment * _SPAN_MS).astype(np.int64)
    for name, rows, first in halves:
        shown = (user, video - first, category[video], label, times)
        _write_csv(out / f"{name}_data.csv", [column[rows] for column in shown])
        np.save(out / f"{name}_probability.npy", probability[rows].astype(np.float32))
    report = _report(user, label, probability, is_test)
    (out / "world.json").write_text(json.dumps({**arguments, **asdict(report)}, indent=2) + "\n")
    return report


def _report(
    user: IntArray, label: IntArray, probability: Doubles, is_test: npt.NDArray[np.bool_]
) -> WorldReport:
    test = user[is_test], label[is_test].astype(np.float32), probability[is_test]
    return WorldReport(
        train_rows=int((~is_test).sum()),
        test_rows=int(is_test.sum()),
        click_share=float(label.mean()),
        oracle_auc=mean_auc(*test),
        oracle_gauc=weighted_auc(*test),
    )


def _moments(rng: np.random.Generator, users: int, count: int) -> tuple[IntArray, Doubles]:
    """Draw whose and when each impression is, 0 to 1, sorted by both."""
    watches = rng.lognormal(sigma=_ACTIVITY_SPREAD, size=users)
    user = np.sort(rng.choice(users, count, p=watches / watches.sum()))
    moment = rng.random(count)
    order = np.lexsort((moment, user))
    return user[order], moment[order]


class _Interests:
    """Where every user's interests stand at any moment of the log, 0 to 1.

    Each interest swells and fades (a slow wave of its own phase), and its visual direction, near
    one of the styles that videos have, turns towards another over the time of the log.
    """

    def __init__(
        self, rng: np.random.Generator, users: int, categories: int, styles: FloatArray
    ) -> None:
        shape, feature_dim = (users, _MAX_INTERESTS), styles.shape[1]
        self.category = rng.integers(0, categories, shape)
        near = styles[rng.integers(0, len(styles), shape)]
        self._from = _unit(near + 0.3 * _unit(rng.normal(size=(*shape, feature_dim))))
        self._to = _unit(self._from + 0.8 * styles[rng.integers(0, len(styles), shape)])
        self._phase, self._speed = rng.random(shape), rng.uniform(0.05, 0.3, shape)
        count = rng.integers(3, _MAX_INTERESTS + 1, users)
        self._alive = np.arange(_MAX_INTERESTS) < count[:, None]

    def strength(self, user: IntArray, moment: Doubles) -> Doubles:
        """How strong each interest is: [n, interests], 0 to 1."""
        wave = np.cos(2 * np.pi * (self._phase[user] + self._speed[user] * moment[:, None]))
        strength: Doubles = (0.5 + 0.5 * wave) * self._alive[user]
        return strength

    def click_probability(
        self,
        user: IntArray,
        moment: Doubles,
        category: IntArray,
        features: FloatArray,
        item: IntArray,
    ) -> Doubles:
        """The true probability that the user clicks, [n]; in pieces of one user's rows each.

        Args:
            user: [n], ascending.
            moment: [n], 0 to 1.
            category: [n], of the video.
            features: [videos, F].
            item: [n], the video's row there.
        """
        out = np.empty(len(user))
        edges = np.flatnonzero(np.r_[True, user[1:] != user[:-1], True])
        shown = tqdm(pairwise(edges.tolist()), "clicks", len(edges) - 1, leave=False, disable=None)
        for begin, end in shown:
            part, who = slice(begin, end), int(user[begin])
            look = _unit(features[item[part]]).astype(np.float64)
            start, turn = self._from[who], self._to[who] - self._from[who]
            visual = look @ start.T + moment[part, None] * (look @ turn.T)
            same = self.category[who] == category[part][:, None]
            liking = _CATEGORY_GAIN * same + _VISUAL_GAIN * np.clip(visual * 2.0, 0, 1)
            logit = _BIAS + (self.strength(user[part], moment[part]) * liking).max(axis=1)
            out[part] = 1 / (1 + np.exp(-logit))
        return out


def _write_videos(
    rng: np.random.Generator,
    out: Path,
    counts: tuple[int, int],
    categories: int,
    feature_dim: int,
) -> tuple[IntArray, FloatArray]:
    """Write features, the look of category and style and the video's own.

    Returns:
        The categories of all videos, and the styles, [styles, F].
    """
    videos = sum(counts)
    category = rng.integers(0, categories, videos)
    prototype = _unit(rng.normal(size=(categories, feature_dim)))
    # Few directions of style, so that looks recur between videos.
    styles = _unit(rng.normal(size=(24, feature_dim)))
    style = rng.integers(0, len(styles), videos)
    first = 0
    for name, count in zip(PARTS, counts, strict=True):
        path = out / f"{name}_cover_image_feature.npy"
        with NpyFile(path, np.float32, (feature_dim,)) as file:
            for begin in range(first, first + count, _ROWS_PER_PIECE):
                part = slice(begin, min(begin + _ROWS_PER_PIECE, first + count))
                own = _unit(rng.normal(size=(part.stop - part.start, feature_dim)))
                look = 0.6 * prototype[category[part]] + 0.8 * styles[style[part]] + 0.3 * own
                file.append(_unit(look).astype(np.float32))
        first += count
    return category, styles


def _choose(
    rng: np.random.Generator,
    interests: _Interests,
    user: IntArray,
    moment: Doubles,
    category: IntArray,
    is_test: np.ndarray,
    first_test: int,
) -> IntArray:
    """Choose the video of each impression: half at random, half of an interest's category."""
    count = len(user)
    chosen = np.empty(count, np.int64)
    wanted = np.empty(count, np.int64)
    for begin in range(0, count, _ROWS_PER_PIECE):
        part = slice(begin, begin + _ROWS_PER_PIECE)
        # Gumbel noise turns the largest of log strengths into a draw in proportion to strength.
        strength = interests.strength(user[part], moment[part])
        noise = rng.gumbel(size=strength.shape)
        which = np.argmax(np.log(strength + 1e-9) + noise, axis=1)
        wanted[part] = interests.category[user[part], which]
    exploits = rng.random(count) < _EXPLOIT_SHARE
    draw = rng.random(count)
    for rows, first, last in ((~is_test, 0, first_test), (is_test, first_test, len(category))):
        chosen[rows] = first + (draw[rows] * (last - first)).astype(np.int64)
        by_category = first + np.argsort(category[first:last], kind="stable")
        starts = np.searchsorted(category[by_category], np.arange(category.max() + 2))
        sizes = np.diff(starts)[wanted]
        near = rows & exploits & (sizes > 0)
        place = starts[wanted[near]] + (draw[near] * sizes[near]).astype(np.int64)
        chosen[near] = by_category[place]
    return chosen


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _write_csv(path: Path, columns: list[IntArray]) -> None:
    table = pa.table(dict(zip(COLUMNS, columns, strict=True)))
    options = pa.csv.WriteOptions(include_header=False)
    with path.open("wb") as file:
        file.write((",".join(COLUMNS) + "\n").encode())
        pa.csv.write_csv(table, file, options)


def _check(
    users: int, videos: int, interactions: int, categories: int, feature_dim: int, seed: int
) -> None:
    limits = {"users": (users, 1), "videos": (videos, 8), "interactions": (interactions, 10)}
    limits |= {"categories": (categories, 1), "feature_dim": (feature_dim, 2), "seed": (seed, 0)}
    faults = [
        f"{n} is {value}, at least {low}" for n, (value, low) in limits.items() if value < low
    ]
    if faults:
        raise DataError("no world can be made: " + "; ".join(faults))
