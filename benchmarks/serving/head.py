"""The head alone: beside its graph, beside the head as the paper writes it, and beside the whole network.

All run on one thread, all but the compiled head in ONNX Runtime. *As written*: eqs. 9 and 10 for every candidate and block, all
units, nothing computed beforehand but the profile and the candidate's embedding. *Whole network*:
the history encoded and profiled again for every candidate. The machine's own matrix rate is that of
a float32 product of 1,024 x 1,024 matrices, by the same library on the same thread.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from benchmarks.serving.scenario import SHAPE, make_network
from model_store import CPU, GRAPHS_ONLY, FloatArray, Model
from service.head import tiles_of
from training.compact import compact
from training.export import export_graphs, layout_of
from training.models.thacil import Profile, Thacil

COUNTS = (1, 50, 200, 1_000, 5_000)
WHOLE_COUNT = 50
Runs = dict[str, list[float]]


class AsWritten(nn.Module):
    """Target attention and feed-forward part, straight from the paper."""

    def __init__(self, network: Thacil) -> None:
        super().__init__()
        self.network = network

    def forward(self, blocks: Tensor, candidates: Tensor) -> Tensor:
        """Score embedded candidates [N, D] for a profile [B, D]."""
        count = candidates.shape[0]
        repeated = blocks[None].expand(count, -1, -1)
        valid = torch.ones(repeated.shape[:2], dtype=torch.bool)
        user = self.network.target(Profile(repeated, valid), candidates)
        return self.network.head(user, candidates)


class Whole(nn.Module):
    """The network from features to logits, everything anew for every row."""

    def __init__(self, network: Thacil) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Tensor, categories: Tensor, candidates: Tensor, candidate_category: Tensor
    ) -> Tensor:
        """Score N candidates, each with its own history [N, L, F]."""
        net = self.network
        clicks = net.embed(features, categories)
        lengths = torch.full((features.shape[0],), SHAPE.history_length)
        profile = net.profile(clicks, lengths)
        embedded = net.embed(candidates, candidate_category)
        return net.head(net.target(profile, embedded), embedded)


def measure_head(*, rounds: int) -> tuple[dict[str, float], Runs]:
    """Time everything in turns; summary and every round's figures."""
    cases = {name: _cases(pruned=name == "pruned") for name in ("live", "pruned")}
    rate = _matrix_rate()
    runs: Runs = defaultdict(list)
    for _ in range(rounds):
        runs["matrix_gflops"].append(rate())
        for name, functions in cases.items():
            for what, function in functions.items():
                runs[f"{name}_{what}_us"].append(1e6 * _seconds(function))
    middle = {name: statistics.median(values) for name, values in runs.items()}
    summary = {f"head_{n}_us": middle[f"pruned_head_{n}_us"] for n in COUNTS}
    summary |= {f"head_{n}_live_us": middle[f"live_head_{n}_us"] for n in COUNTS}
    for kind in ("pruned", "live"):
        suffix = "" if kind == "pruned" else "_live"
        for n in COUNTS:
            summary[f"head_graph_{n}{suffix}_us"] = middle[f"{kind}_graph_{n}_us"]
        summary[f"head_200_x_graph{suffix}"] = _ratio(runs, kind, "graph_200", "head_200")
    summary |= {f"head_200_{k}_blocks_us": middle[f"pruned_head_200_{k}_blocks_us"] for k in (1, 4)}
    for name, suffix in (("pruned", ""), ("live", "_live")):
        head = middle[f"{name}_head_200_us"]
        summary[f"head_200_x_as_written{suffix}"] = _ratio(runs, name, "as_written_200", "head_200")
        # One candidate costs the whole network the same, however many there are.
        whole = 200 / WHOLE_COUNT * middle[f"{name}_whole_{WHOLE_COUNT}_us"]
        summary[f"head_200_x_whole_network{suffix}"] = whole / head
    # Of the network with all units alive: the shapes are then those of the paper.
    flops = _flops(1_000)
    done = flops / middle["live_head_1000_us"] / 1e3
    summary["head_1000_share_of_matrix_rate"] = done / middle["matrix_gflops"]
    summary["matrix_gflops"] = middle["matrix_gflops"]
    return summary, dict(runs)


def whole_graph(*, pruned: bool) -> bytes:
    """Return the network from features to logits as one ONNX graph."""
    few = {
        "features": np.zeros((3, SHAPE.history_length, SHAPE.feature_dim), np.float32),
        "categories": np.zeros((3, SHAPE.history_length), np.int64),
        "candidates": np.zeros((3, SHAPE.feature_dim), np.float32),
        "candidate_category": np.zeros(3, np.int64),
    }
    return _graph(Whole(make_network(pruned=pruned)), few)


def _ratio(runs: Runs, name: str, slow: str, fast: str) -> float:
    pairs = zip(runs[f"{name}_{slow}_us"], runs[f"{name}_{fast}_us"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _flops(count: int) -> float:
    width, blocks = SHAPE.embedding_dim, SHAPE.num_blocks
    # The first block's scores are those that the softmax subtracts: none.
    score = 2 * count * (blocks - 1) * width * width
    hidden = 2 * count * width * SHAPE.hidden_dim
    return score + hidden


def _cases(*, pruned: bool) -> dict[str, Callable[[], object]]:
    network = make_network(pruned=pruned)
    small, _ = compact(network)
    graphs, layout = export_graphs(small), layout_of(small)
    model, graph = (Model(graphs, layout, device=device) for device in (CPU, GRAPHS_ONLY))
    rng = np.random.default_rng(2)
    features = rng.standard_normal((5_000, 512)).astype(np.float32)
    categories = rng.integers(0, 512, 5_000)
    rows = model.encode_videos(features, categories)
    profile = model.profile(rows[: SHAPE.history_length])
    with torch.inference_mode():
        embedded = network.embed(torch.from_numpy(features), torch.from_numpy(categories)).numpy()
        blocks = network.profile(torch.from_numpy(embedded[None, :160]), torch.tensor([160]))
    written = _session(AsWritten(network), {"blocks": blocks.blocks[0], "candidates": embedded[:3]})
    history = (features[None, :160], categories[None, :160])
    whole = _one_thread(whole_graph(pruned=pruned))
    whole_inputs = {
        "features": np.repeat(history[0], WHOLE_COUNT, 0),
        "categories": np.repeat(history[1], WHOLE_COUNT, 0),
        "candidates": features[:WHOLE_COUNT],
        "candidate_category": categories[:WHOLE_COUNT],
    }
    width = model.layout.candidate_dim
    candidate_rows = np.ascontiguousarray(rows[:, :width])
    as_written = {"blocks": blocks.blocks[0].numpy()}
    for each in (model, graph):
        _check(each, profile, candidate_rows, written, as_written, embedded)
    cases: dict[str, Callable[[], object]] = {}
    for count in COUNTS:
        cases[f"head_{count}"] = lambda n=count: model.logits(profile, candidate_rows[:n])
        cases[f"graph_{count}"] = lambda n=count: _by_tile(graph, profile, candidate_rows[:n])
        inputs = {**as_written, "candidates": embedded[:count]}
        cases[f"as_written_{count}"] = lambda i=inputs: written.run(None, i)
    for filled in (1, 4):
        cases[f"head_200_{filled}_blocks"] = lambda k=filled: model.logits(
            profile[:k], candidate_rows[:200]
        )
    cases[f"whole_{WHOLE_COUNT}"] = lambda: whole.run(None, whole_inputs)
    return cases


def _by_tile(model: Model, profile: FloatArray, rows: FloatArray) -> None:
    for tile in tiles_of(len(rows)):
        model.logits(profile, rows[tile])


def _check(
    model: Model,
    profile: FloatArray,
    rows: FloatArray,
    written: ort.InferenceSession,
    inputs: dict[str, FloatArray],
    embedded: FloatArray,
) -> None:
    ours = model.logits(profile, rows[:100])
    theirs = written.run(None, {**inputs, "candidates": embedded[:100]})[0]
    difference = float(np.abs(ours - theirs).max())
    if difference > 1e-5:  # noqa: PLR2004
        raise SystemExit(f"the two heads differ by {difference:.2g}: not the same work")


def _session(module: nn.Module, inputs: dict[str, object]) -> ort.InferenceSession:
    return _one_thread(_graph(module, inputs))


def _graph(module: nn.Module, inputs: dict[str, object]) -> bytes:
    arrays = {name: torch.as_tensor(value) for name, value in inputs.items()}
    count = torch.export.Dim.DYNAMIC
    dynamic = {name: None if name in ("blocks", "b") else {0: count} for name in arrays}
    file = io.BytesIO()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), (), kwargs=arrays, dynamo=True, dynamic_shapes=dynamic, verbose=False
        )
        assert program is not None  # noqa: S101
        program.save(file)
    return file.getvalue()


def _one_thread(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class _Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def _matrix_rate() -> Callable[[], float]:
    size = 1_024
    matrix = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    session = _session(_Product(), {"a": matrix, "b": matrix})
    inputs = {"a": matrix, "b": matrix}

    def rate() -> float:
        return 2 * size**3 / _seconds(lambda: session.run(None, inputs)) / 1e9

    return rate


def _seconds(function: Callable[[], object], *, least: float = 0.15) -> float:
    """Return the median time of one call, over at least so many seconds."""
    function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:  # noqa: PLR2004
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
