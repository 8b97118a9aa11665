"""A lower precision is exported where validation allows it, and is served like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model_store import Model, ModelStore
from training.__main__ import main
from training.config import RunConfig, parse_config
from training.errors import PrecisionError
from training.export import export_graphs, golden_cases, layout_of, publish
from training.fit import fit, load_run
from training.interactions import ClickLog, load_click_log
from training.models.thacil import Thacil
from training.precision import LIMIT, check_precision, halved, store_halves
from training.synthetic import synthesize

CONFIG = {
    "preset": "modern",
    "threads": 1,
    "network": {
        "item_dim": 16, "category_dim": 16, "num_heads": 4, "hidden_dim": 32,
        "num_blocks": 3, "block_size": 4,
    },
    "data": {"validation_item_share": 0.2},
    "optim": {"batch_size": 64, "max_epochs": 1, "learning_rate": 0.003},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    synthesize(out, users=80, videos=600, interactions=12_000, seed=5, categories=8, feature_dim=12)
    return out


@pytest.fixture(scope="module")
def log(world: Path) -> ClickLog:
    return load_click_log(world)


@pytest.fixture(scope="module")
def run(log: ClickLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precision") / "run"
    fit(parse_config(CONFIG, source="test"), log, out)
    return out


@pytest.fixture(scope="module")
def trained(run: Path) -> tuple[RunConfig, Thacil]:
    config, network = load_run(run)
    assert isinstance(network, Thacil)
    return config, network


def _coarse(network: Thacil) -> Thacil:
    """The same rankings in float32, from weights that float16 can hardly hold."""
    coarse = halved(network)
    with torch.no_grad():
        coarse.output.weight.mul_(1e-6)
        coarse.output.bias.mul_(1e-6)
    return coarse


def test_halves_are_the_same_bits_in_half_the_bytes(trained: tuple[RunConfig, Thacil]) -> None:
    """Storing rounds nothing: a rounded network's graphs answer alike, one not rounded is kept."""
    network = halved(trained[1])
    graphs = export_graphs(network)
    small = {name: store_halves(graph) for name, graph in graphs.items()}
    golden, layout = golden_cases(network, seed=2), layout_of(network)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((9, 12)).astype(np.float32)
    models = Model(graphs, layout), Model(small, layout)
    rows, rows_small = (model.encode_videos(features, np.arange(9)) for model in models)

    assert models[1].prove(golden, tolerance=1e-5) < 1e-5
    np.testing.assert_array_equal(rows, rows_small)
    weights = sum(weight.numel() for weight in network.parameters())
    saved = sum(len(graphs[name]) - len(small[name]) for name in graphs)
    assert saved > 1.4 * weights
    for name, graph in small.items():
        for tensor in onnx.load_from_string(graph).graph.initializer:
            count = int(np.prod(tensor.dims))
            assert count < 256 or tensor.data_type == onnx.TensorProto.FLOAT16, (name, tensor.name)
    with torch.no_grad():
        network.output.weight.add_(1e-4)
    unrounded = export_graphs(network)["score_head"]
    assert Model({**small, "score_head": store_halves(unrounded)}, layout).prove(
        golden_cases(network, seed=2), tolerance=1e-5
    ) < 1e-5  # fmt: skip


def test_what_moves_a_ranking_is_refused(trained: tuple[RunConfig, Thacil], log: ClickLog) -> None:
    """With the value, the limit and the way out; what moves nothing passes."""
    config, network = trained
    coarse = _coarse(network)
    with pytest.raises(PrecisionError) as refused:
        check_precision(config, coarse, halved(coarse), log)

    moved = check_precision(config, coarse, halved(coarse), log, limit=1.0)
    assert moved.moved >= LIMIT
    assert f"{moved.moved:.2g}" in str(refused.value)
    assert "0.0001" in str(refused.value)
    assert "export in float32" in str(refused.value)
    assert check_precision(config, network, network, log).moved == 0.0


def test_weights_beyond_float16_are_refused(trained: tuple[RunConfig, Thacil]) -> None:
    """Rather than becoming infinite; so is one that is no number."""
    for value in (1e5, float("nan")):
        network = halved(trained[1])
        with torch.no_grad():
            network.hidden.bias[0] = value
        with pytest.raises(PrecisionError, match=r"hidden\.bias.*65504"):
            halved(network)


def test_the_verb_measures_and_records(
    run: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A float16 export needs the log; the version carries both figures."""
    # On few validation rows a single pair that changes places is more than is allowed: these
    # weights are float16's already.
    half = Path(shutil.copytree(run, tmp_path / "run"))
    torch.save(halved(load_run(run)[1]).state_dict(), half / "best.pt")  # type: ignore[arg-type]
    arguments = ["export", "--run", str(half), "--store", str(tmp_path / "store")]
    assert main([*arguments, "--precision", "float16"]) == 1
    assert "--data" in capsys.readouterr().err

    assert main([*arguments, "--precision", "float16", "--data", str(world)]) == 0
    version = capsys.readouterr().out.splitlines()[-1]
    opened = ModelStore(tmp_path / "store").open(version)
    provenance = opened.manifest.provenance
    assert provenance["precision"] == "float16"
    found = provenance["validation"]
    assert isinstance(found, dict)
    assert abs(found["gauc"] - found["float32_gauc"]) < LIMIT
    # The golden answers that a service replays are those of what it serves.
    rounded = golden_cases(halved(load_run(run)[1]), seed=8)  # type: ignore[arg-type]
    assert opened.model.prove(rounded, tolerance=1e-5) < 1e-5


def test_the_default_is_float32(trained: tuple[RunConfig, Thacil], tmp_path: Path) -> None:
    """And says so."""
    store = ModelStore(tmp_path)

    assert store.manifest(publish(trained[1], store)).provenance["precision"] == "float32"
