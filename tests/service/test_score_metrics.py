"""What /metrics says about the scores and the version that gave them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_store import ModelStore

from .conftest import serving, tiny_draft, wait_for


def shown(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """All samples by name and values of labels."""
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def score(client: httpx.Client, *videos: str) -> list[float | None]:
    body = {"user_id": "nobody-at-all", "candidates": [{"video_id": video} for video in videos]}
    answer = client.post("/score", json=body).raise_for_status().json()
    return [row["score"] for row in answer["results"]]


@pytest.fixture
def videos(client: httpx.Client) -> list[str]:
    """Two videos with the same content, so with the same score."""
    names = ["scored-0", "scored-1"]
    body = [{"video_id": name, "category": 1, "features": [0.5, 1, 0.25]} for name in names]
    client.put("/videos", json={"videos": body}).raise_for_status()
    return names


def test_a_ranking_counts_one_of_its_scores(client: httpx.Client, videos: list[str]) -> None:
    """Each ranking adds one score to count and sum, in the bucket that it falls into."""
    before = shown(client)
    answers = [score(client, *videos) for _ in range(5)]
    after = shown(client)
    value = answers[0][0]
    assert value is not None

    grown = {
        key: after[key] - before.get(key, 0.0) for key in after if key[0].startswith("ctr_score")
    }
    assert grown["ctr_score_count",] == 5
    assert grown["ctr_score_sum",] == pytest.approx(5 * value)
    for (name, *labels), growth in grown.items():
        if name == "ctr_score_bucket":
            assert growth == (5 if value <= float(labels[0]) else 0)


def test_a_candidate_without_a_score_does_not_count(client: httpx.Client) -> None:
    """A ranking of unknown videos has no score to count."""
    before = shown(client).get(("ctr_score_count",), 0.0)

    assert score(client, "never-registered") == [None]
    assert shown(client).get(("ctr_score_count",), 0.0) == before


def test_the_age_is_that_of_the_version_that_answers(tmp_path: Path, redis_url: str) -> None:
    """Each version is shown with the moment of its publication; one of them answers."""
    store = ModelStore(tmp_path / "store")
    first, second = (store.publish(tiny_draft(weight)) for weight in (0.1, 0.2))
    store.promote(first)
    data = tmp_path / "served"
    data.mkdir()
    with serving(store, data, "--redis-url", redis_url, "--workers", "2") as client:
        wait_for(lambda: shown(client).get(("ctr_model_info", "tiny", first)) == 1)
        store.promote(second)
        wait_for(lambda: shown(client).get(("ctr_model_info", "tiny", second)) == 1)
        wait_for(lambda: shown(client).get(("ctr_model_info", "tiny", first)) == 0)
        samples = shown(client)

    for version in (first, second):
        created = datetime.fromisoformat(store.open(version).manifest.created_at)
        moment = samples["ctr_model_created_timestamp_seconds", "tiny", version]
        assert moment == pytest.approx(created.timestamp())
