"""Offline equals online: the trainer's own evaluation against scores over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from model_store import FloatArray, ModelStore, click_probabilities
from training.config import load_config
from training.evaluate import score, test_examples
from training.export import publish
from training.fit import fit, load_run
from training.interactions import ClickLog, load_click_log
from training.synthetic import synthesize

from .conftest import serving

TINY = """
threads = 1
[network]
item_dim = 8
category_dim = 8
num_heads = 2
num_blocks = 4
block_size = 5
hidden_dim = 16
[data]
validation_item_share = 0.2
[optim]
batch_size = 64
max_epochs = 2
"""
# Measured on this world: storing features as float16 moves a probability by less than this.
FLOAT16_COST = 2e-4


@dataclass(frozen=True, slots=True)
class World:
    log: ClickLog
    offline: FloatArray
    client: httpx.Client
    tolerance: float


@pytest.fixture(scope="module", params=[1e-5, FLOAT16_COST], ids=["exact", "rounded"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A trained network, published and served.

    Once with features that float16 holds exactly, which leaves nothing but the arithmetic of
    two runtimes to differ, and once with features that storing rounds.
    """
    root = tmp_path_factory.mktemp("offline_online")
    synthesize(root, users=40, videos=300, interactions=5000, seed=2, categories=8, feature_dim=12)
    if request.param < FLOAT16_COST:
        for path in root.glob("*_cover_image_feature.npy"):
            np.save(path, np.load(path).astype(np.float16).astype(np.float32))
    (root / "tiny.toml").write_text(TINY)
    log = load_click_log(root)
    config = load_config("modern", overrides=root / "tiny.toml")
    fit(config, log, root / "run")
    _, network = load_run(root / "run")
    store = ModelStore(root / "store")
    store.promote(publish(network, store))
    assert log.test is not None
    offline = score(network, test_examples(config, log, log.test))
    with serving(store, root) as client:
        yield World(log, offline, client, request.param)


def _post_clicks(world: World) -> None:
    train = world.log.train
    events = [
        {
            "user_id": str(train.user_ids[row]),
            "video_id": f"train-{train.item_ids[row]}",
            "timestamp": int(train.timestamps_ms[row]),
        }
        for row in np.random.default_rng(0).permutation(np.flatnonzero(train.labels == 1))
    ]
    answer = world.client.post("/events", json={"events": events}).raise_for_status().json()
    assert {r["status"] for r in answer["results"]} <= {"accepted", "late", "too_old"}


def _register(world: World, half: str) -> None:
    log = world.log
    part, features = (
        (log.train, log.train_features) if half == "train" else (log.test, log.test_features)
    )
    assert part is not None
    assert features is not None
    category = dict(zip(part.item_ids.tolist(), part.categories.tolist(), strict=True))
    videos = [
        {"video_id": f"{half}-{item}", "category": c, "features": features[item].tolist()}
        for item, c in category.items()
    ]
    answer = world.client.put("/videos", json={"videos": videos}).raise_for_status().json()
    assert answer["faults"] == []


def _online(world: World, *, inline: bool) -> FloatArray:
    test, features = world.log.test, world.log.test_features
    assert test is not None
    assert features is not None
    scores = np.full(len(test), np.nan)
    for user in np.unique(test.user_ids):
        rows = np.flatnonzero(test.user_ids == user)
        candidates = [
            {
                "video_id": f"test-{test.item_ids[row]}",
                "category": int(test.categories[row]),
                "features": features[test.item_ids[row]].tolist(),
            }
            if inline
            else {"video_id": f"test-{test.item_ids[row]}"}
            for row in rows
        ]
        body = {"user_id": str(user), "candidates": candidates}
        answer = world.client.post("/score", json=body).raise_for_status().json()
        for result in answer["results"]:
            scores[rows[result["index"]]] = result["score"]
    return scores


def test_online_scores_are_the_trainers(world: World) -> None:
    """Every test impression, candidates inline and stored, over the same acknowledged clicks."""
    offline = click_probabilities(world.offline)
    _post_clicks(world)
    _register(world, "train")
    _register(world, "test")

    inline = _online(world, inline=True)
    stored = _online(world, inline=False)

    assert np.std(offline) > 0.01
    np.testing.assert_allclose(inline, offline, atol=world.tolerance, rtol=0)
    np.testing.assert_allclose(stored, offline, atol=world.tolerance, rtol=0)
