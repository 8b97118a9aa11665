"""The exported graphs are the trained network, in three parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_store import COMPILED_HEAD, ModelStore
from training.export import golden_cases, publish
from training.models.thacil import Thacil, ThacilShape


@pytest.fixture(scope="module", params=[False, True], ids=["paper", "modern"])
def network(request: pytest.FixtureRequest) -> Thacil:
    torch.manual_seed(5)
    shape = ThacilShape(
        feature_dim=6,
        num_categories=5,
        item_dim=4,
        category_dim=4,
        num_heads=2,
        num_blocks=3,
        block_size=4,
        hidden_dim=8,
        interaction=request.param,
        block_age=request.param,
    )
    network = Thacil(shape).eval()
    # Fresh norms are the identity and fresh biases zero: too plain to tell anything.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        network.category_embedding.weight[5].zero_()
    return network


@pytest.fixture(scope="module")
def store(network: Thacil, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    store.promote(publish(network, store, metrics={"gauc": 0.6}))
    return store


def test_graphs_answer_as_the_network_does(network: Thacil, store: ModelStore) -> None:
    """Cases that the export never saw: every length, one and many candidates, within 1e-5."""
    golden = golden_cases(network, seed=99)

    deviation = store.open().model.prove(golden, tolerance=1e-5)

    assert deviation < 1e-5
    assert np.std(golden.logits) > 0.1


def test_what_was_proved_is_written_down(store: ModelStore) -> None:
    """The graph, and the compiled head for all registers that the publishing machine has."""
    proved = store.open().manifest.provenance["logit_deviation_by_head"]

    assert isinstance(proved, dict)
    assert set(proved) == {"graph", *(f"{bits} bits" for bits in COMPILED_HEAD.ways)}


def test_golden_cases_cover_the_edges(network: Thacil) -> None:
    """No click, one, a part of a block, a block, one more, full; and unknown categories."""
    golden = golden_cases(network)

    assert {0, 1, 2, 4, 5, 12} == set(golden.lengths.tolist())
    assert (golden.candidate_categories >= 5).any()
    assert (golden.history_categories == 5).any()


def test_any_number_of_candidates(network: Thacil, store: ModelStore) -> None:
    """Sizes are dynamic, from no candidate to thousands, and do not change an answer."""
    model, rng = store.open().model, np.random.default_rng(1)
    features = rng.normal(size=(3000, 6)).astype(np.float32)
    rows = model.encode_videos(features, rng.integers(0, 5, 3000))
    profile = model.profile(rows[:7])
    together = model.logits(profile, rows)

    assert model.logits(profile, rows[:0]).shape == (0,)
    for n in (1, 2, 255):
        np.testing.assert_allclose(model.logits(profile, rows[:n]), together[:n], atol=1e-6)


def test_no_local_path_leaves_with_a_graph(store: ModelStore) -> None:
    """Exported files name no source file."""
    for path in (store.root / "versions" / store.current()).glob("*.onnx"):
        data = path.read_bytes()

        assert b".py" not in data
        assert str(Path.home()).encode() not in data


def test_metrics_travel_with_the_version(store: ModelStore) -> None:
    """The manifest carries what evaluation measured and what exported it."""
    manifest = store.manifest(store.current())

    assert manifest.metrics == {"gauc": 0.6}
    assert manifest.provenance["torch"] == torch.__version__
