"""A synthetic world with known click probabilities, written as a click log.

Every user has a few interests, each a category and a visual direction, which drift over time.
Clicks are drawn from a probability that is saved beside the log, so that the best possible AUC
(the oracle's) is known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, IntArray
from training.errors import DataError
from training.metrics import mean_auc, weighted_auc

Doubles = npt.NDArray[np.float64]
_START_MS = 1_600_000_000_000
_SPAN_MS = 28 * 86_400_000
_MAX_INTERESTS = 6
_ACTIVITY = 0.8
_TEST_SHARE = 0.2
_TEST_VIDEO_SHARE = 0.25
# Of a user's impressions this share is near an interest, as a feed would choose them.
_EXPLOIT_SHARE = 0.5
_BIAS, _CATEGORY_GAIN, _VISUAL_GAIN = -3.0, 3.5, 5.0


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
) -> WorldReport:
    """Write a world in the MicroVideo-1.7M layout; the same arguments give the same bytes.

    Beside the log lie ``train_probability.npy`` and ``test_probability.npy`` (the true click
    probability of each row) and ``world.json`` (arguments and oracle).

    Raises:
        DataError: sizes of which no world can be made.
    """
    _check(users, videos, interactions, categories, feature_dim)
    rng = np.random.default_rng(seed)
    category, features, styles = _make_videos(rng, videos, categories, feature_dim)
    first_test = int(videos * (1 - _TEST_VIDEO_SHARE))
    activity = rng.lognormal(sigma=_ACTIVITY, size=users)
    user = np.sort(rng.choice(users, interactions, p=activity / activity.sum()))
    moment = rng.random(interactions)
    order = np.lexsort((moment, user))
    user, moment = user[order], moment[order]
    is_test = moment >= 1 - _TEST_SHARE
    interests = _Interests(rng, users, categories, styles)
    video = _choose(rng, interests, user, moment, category, is_test, first_test)
    probability = interests.click_probability(user, moment, category[video], features[video])
    label = (rng.random(interactions) < probability).astype(np.int64)
    times = _START_MS + (moment * _SPAN_MS).astype(np.int64)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows, first in (("train", ~is_test, 0), ("test", is_test, first_test)):
        item = video[rows] - first
        table = np.stack([user[rows], item, category[video[rows]], label[rows], times[rows]], 1)
        _write_csv(out / f"{name}_data.csv", table)
        np.save(out / f"{name}_probability.npy", probability[rows].astype(np.float32))
    np.save(out / "train_cover_image_feature.npy", features[:first_test])
    np.save(out / "test_cover_image_feature.npy", features[first_test:])
    test = user[is_test], label[is_test].astype(np.float32), probability[is_test]
    report = WorldReport(
        train_rows=int((~is_test).sum()),
        test_rows=int(is_test.sum()),
        click_share=float(label.mean()),
        oracle_auc=mean_auc(*test),
        oracle_gauc=weighted_auc(*test),
    )
    arguments = {
        "users": users,
        "videos": videos,
        "interactions": interactions,
        "seed": seed,
        "categories": categories,
        "feature_dim": feature_dim,
    }
    text = json.dumps({**arguments, **asdict(report)}, indent=2)
    (out / "world.json").write_text(text + "\n")
    return report


class _Interests:
    """Where every user's interests stand at any moment of the log, 0 to 1.

    Each interest swells and fades (a slow wave of its own phase), and its visual direction turns
    from one point to another over the time of the log.
    """

    def __init__(
        self, rng: np.random.Generator, users: int, categories: int, styles: FloatArray
    ) -> None:
        shape, feature_dim = (users, _MAX_INTERESTS), styles.shape[1]
        self.category = rng.integers(0, categories, shape)
        look = styles[rng.integers(0, len(styles), shape)]
        self._from = _unit(look + 0.3 * _unit(rng.normal(size=(*shape, feature_dim))))
        turn = styles[rng.integers(0, len(styles), shape)]
        self._to = _unit(self._from + 0.8 * turn)
        self._phase, self._speed = rng.random(shape), rng.uniform(0.05, 0.3, shape)
        count = rng.integers(3, _MAX_INTERESTS + 1, users)
        self._alive = np.arange(_MAX_INTERESTS) < count[:, None]

    def strength(self, user: IntArray, moment: Doubles) -> Doubles:
        """How strong each interest is: [n, interests], 0 to 1."""
        wave = np.cos(2 * np.pi * (self._phase[user] + self._speed[user] * moment[:, None]))
        strength: Doubles = (0.5 + 0.5 * wave) * self._alive[user]
        return strength

    def click_probability(
        self, user: IntArray, moment: Doubles, category: IntArray, features: FloatArray
    ) -> Doubles:
        """The true probability that the user clicks, [n]; in pieces, to bound memory."""
        out = np.empty(len(user))
        for begin in range(0, len(user), 20_000):
            part = slice(begin, begin + 20_000)
            who, when = user[part], moment[part]
            direction = self._from[who] + when[:, None, None] * (self._to[who] - self._from[who])
            visual = np.einsum("nid,nd->ni", direction, _unit(features[part]))
            same = self.category[who] == category[part][:, None]
            liking = _CATEGORY_GAIN * same + _VISUAL_GAIN * np.clip(visual * 2.0, 0, 1)
            logit = _BIAS + (self.strength(who, when) * liking).max(axis=1)
            out[part] = 1 / (1 + np.exp(-logit))
        return out


def _make_videos(
    rng: np.random.Generator, videos: int, categories: int, feature_dim: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Features: the look of the category and the video's own, about unit length."""
    category = rng.integers(0, categories, videos)
    prototype = _unit(rng.normal(size=(categories, feature_dim)))
    # Few directions of style, so that looks recur between videos.
    styles = _unit(rng.normal(size=(24, feature_dim)))
    style = styles[rng.integers(0, len(styles), videos)]
    own = _unit(rng.normal(size=(videos, feature_dim)))
    features = _unit(0.6 * prototype[category] + 0.8 * style + 0.3 * own)
    return category, features.astype(np.float32), styles


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
    # Gumbel noise turns the largest of log strengths into a draw in proportion to strength.
    strength = interests.strength(user, moment)
    noise = rng.gumbel(size=strength.shape)
    which = np.argmax(np.log(strength + 1e-9) + noise, axis=1)
    wanted = interests.category[user, which]
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


def _write_csv(path: Path, table: IntArray) -> None:
    lines = [",".join(map(str, row)) for row in table.tolist()]
    text = "\n".join(["user_id,item_id,cate_id,is_click,timestamp", *lines])
    path.write_text(text + "\n")


def _check(users: int, videos: int, interactions: int, categories: int, feature_dim: int) -> None:
    limits = {"users": (users, 1), "videos": (videos, 8), "interactions": (interactions, 10)}
    limits |= {"categories": (categories, 1), "feature_dim": (feature_dim, 2)}
    faults = [
        f"{n} is {value}, at least {low}" for n, (value, low) in limits.items() if value < low
    ]
    if faults:
        raise DataError("no world can be made: " + "; ".join(faults))
