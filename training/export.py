"""A trained network to a published version: three graphs, proved on golden cases."""

from __future__ import annotations

import copy
import io
import logging
import platform
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict

import numpy as np
import onnx
import torch
from pydantic import JsonValue
from torch import nn

from model_store import (
    EVERY_HEAD,
    Draft,
    Golden,
    Layout,
    Model,
    ModelStore,
    graph_tensors,
)
from training.calibrate import UNCALIBRATED, Calibration
from training.compact import compact
from training.models.score_head import ScoreHead, score_range
from training.models.thacil import Thacil, UserProfile, VideoEncoder
from training.precision import Precision, store_halves

OPSET = 20
_GOLDEN_CANDIDATES = 7
_PROOF_CANDIDATES = 143
_TOLERANCE = 1e-5


def layout_of(network: Thacil) -> Layout:
    """Return the sizes of the graphs that a network exports to."""
    shape, width = network.shape, network.shape.embedding_dim
    halves = network.target_attention.query.out_features + network.hidden.out_features
    return Layout(
        feature_dim=shape.feature_dim,
        num_categories=shape.num_categories,
        num_blocks=shape.num_blocks,
        block_size=shape.block_size,
        row_dim=halves + width,
        candidate_dim=halves if network.interaction is None else halves + width,
        profile_dim=width,
    )


def publish(
    network: Thacil,
    store: ModelStore,
    *,
    model_name: str = "thacil",
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
    calibration: Calibration = UNCALIBRATED,
    precision: Precision = "float32",
) -> str:
    """Export a network, prove the graphs on golden cases and publish them; the version's name.

    Args:
        network: what is served.
        store: where to.
        model_name: what the version is called by.
        metrics: figures that travel with it.
        provenance: where it comes from.
        calibration: folded into the score head, so that its sigmoid is a probability.
        precision: how weights are stored; lower ones are rounded to it already, see ``precision``.

    Raises:
        ModelStoreError: a graph is not what the layout says, or its answers are not the network's.
    """
    network.eval()
    versions: dict[str, JsonValue] = {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
        "opset": OPSET,
    }
    small, kept = compact(network)
    layout, graphs = layout_of(small), export_graphs(small, calibration)
    if precision == "float16":
        graphs = {name: store_halves(graph) for name, graph in graphs.items()}
    # Beside the cases that travel with the version: a thousand more, answered by the network as
    # it was trained.
    thousand = golden_cases(network, seed=1, candidates=_PROOF_CANDIDATES, calibration=calibration)
    moved = _proved(graphs, layout, thousand)
    units: JsonValue = {name: f"{layer.alive} of {layer.total}" for name, layer in kept.items()}
    draft = Draft(
        model_name=model_name,
        layout=layout,
        graphs=graphs,
        golden=golden_cases(network, calibration=calibration),
        metrics=metrics or {},
        provenance={
            **versions,
            "precision": precision,
            "calibration": asdict(calibration),
            "units_kept": units,
            "score_range": score_range(small),
            "logit_deviation": max(moved.values()),
            "logit_deviation_by_head": {**moved},
            **(provenance or {}),
        },
    )
    return store.publish(draft)


def _proved(graphs: Mapping[str, bytes], layout: Layout, cases: Golden) -> dict[str, float]:
    """Return how far logits are off, by what computed them: the graph, registers of so many bits."""
    models = [Model(graphs, layout, device=device) for device in EVERY_HEAD]
    # A head without numbers of its own is its graph, whatever is asked for.
    heads = {f"{m.compiled_head.way} bits" if m.compiled_head else "graph": m for m in models}
    return {name: model.prove(cases, tolerance=_TOLERANCE) for name, model in heads.items()}


def export_graphs(network: Thacil, calibration: Calibration = UNCALIBRATED) -> dict[str, bytes]:
    """Export the three graphs: ONNX bytes by name, without a trace of local paths."""
    layout = layout_of(network)
    head = ScoreHead(_calibrated(network, calibration))
    modules: dict[str, nn.Module] = {
        "video_encoder": VideoEncoder(network),
        "user_profile": UserProfile(network),
        "score_head": head,
    }
    graphs = {}
    for name, tensors in graph_tensors(layout).items():
        # 3 for every dynamic size: exporters like to specialise on 0 and 1.
        inputs = tuple(
            _example(t.dtype, [d if isinstance(d, int) else 3 for d in t.shape])
            for t in tensors.inputs
        )
        dynamic = {
            t.name: {axis: d for axis, d in enumerate(t.shape) if isinstance(d, str)}
            for t in tensors.inputs
        }
        graph = _export(modules[name].eval(), inputs, dynamic, [t.name for t in tensors.outputs])
        if modules[name] is head and (weights := head.weights()) is not None:
            onnx.helper.set_model_props(graph, weights.to_metadata())
        graphs[name] = graph.SerializeToString()
    return graphs


def golden_cases(
    network: Thacil,
    *,
    seed: int = 0,
    candidates: int = _GOLDEN_CANDIDATES,
    calibration: Calibration = UNCALIBRATED,
) -> Golden:
    """Make cases and the network's own calibrated answers to them.

    Histories: no click, one, a part-filled block, exactly one block, one more than that, exactly
    full, and more than full (of which the newest count). One candidate of each user is of an
    unknown category, and so is one click.
    """
    shape, rng = network.shape, np.random.default_rng(seed)
    size, full = shape.block_size, shape.history_length
    clicked = np.array([0, 1, max(1, size // 2), size, min(size + 1, full), full, full + 3])
    lengths = np.minimum(clicked, full)
    scale = 1.0 / np.sqrt(shape.feature_dim)

    def videos(*sizes: int) -> tuple[np.ndarray, np.ndarray]:
        features = rng.normal(scale=scale * 3, size=(*sizes, shape.feature_dim))
        return features.astype(np.float32), rng.integers(0, shape.num_categories, sizes)

    histories = [videos(int(n)) for n in clicked]
    histories = [
        (f[-n:] if n else f, c[-n:] if n else c)
        for (f, c), n in zip(histories, lengths.tolist(), strict=True)
    ]
    histories[1][1][0] = shape.num_categories
    features, categories = videos(len(clicked), candidates)
    categories[:, 0] = shape.num_categories + 5
    logits = [_answers(network, h, (features[g], categories[g])) for g, h in enumerate(histories)]
    return Golden(
        lengths=lengths.astype(np.int64),
        history_features=np.concatenate([h[0] for h in histories]),
        history_categories=np.concatenate([h[1] for h in histories]),
        candidate_features=features,
        candidate_categories=categories,
        logits=calibration.apply(np.stack(logits)),
    )


def _answers(
    network: Thacil,
    history: tuple[np.ndarray, np.ndarray],
    candidates: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Score by the network as it is trained, not by the exported parts."""
    shape, length = network.shape, len(history[0])
    with torch.inference_mode():
        clicks = torch.zeros(1, shape.history_length, shape.embedding_dim)
        clicks[0, :length] = network.embed(*map(torch.from_numpy, history))
        embedded = network.embed(*map(torch.from_numpy, candidates))
        user = torch.zeros(len(embedded), dtype=torch.int64)
        logits: np.ndarray = network(clicks, torch.tensor([length]), user, embedded).numpy()
    return logits


def _calibrated(network: Thacil, calibration: Calibration) -> Thacil:
    """Return a network whose last layer's logits are calibrated: the line costs nothing there."""
    if calibration == UNCALIBRATED:
        return network
    calibrated = copy.deepcopy(network)
    with torch.no_grad():
        calibrated.output.weight.mul_(calibration.slope)
        calibrated.output.bias.mul_(calibration.slope).add_(calibration.offset)
    return calibrated


def _example(dtype: str, shape: list[int]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int64 if dtype == "int64" else torch.float32)


def _export(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dynamic: dict[str, dict[int, str]],
    outputs: list[str],
) -> onnx.ModelProto:
    # The exporter talks at length on stdout and warns of things that are of its own making.
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            input_names=list(dynamic),
            output_names=outputs,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return strip_paths(program.model_proto)


def strip_paths(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what the exporter notes about local source files."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.initializer,
        *graph.value_info,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for part in (function, *function.node):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    return model
