"""A tiny model that obeys the treaty, and a draft of it with true golden answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_store import Draft, Golden, Layout, Model, ModelStore, graph_tensors

LAYOUT = Layout(
    feature_dim=3,
    num_categories=4,
    num_blocks=2,
    block_size=2,
    row_dim=4,
    candidate_dim=4,
    profile_dim=5,
)

_DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def graph_bytes(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    layout: Layout = LAYOUT,
) -> bytes:
    tensors = graph_tensors(layout)[name]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, _DTYPES[t.dtype], t.shape) for t in side]
        for side in (tensors.inputs, tensors.outputs)
    )
    initializers = [onnx.numpy_helper.from_array(a, key) for key, a in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def video_encoder(layout: Layout = LAYOUT) -> bytes:
    """Give rows = [features, category]."""
    node = helper.make_node
    nodes = [
        node("Cast", ["category"], ["number"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["number", "last"], ["column"]),
        node("Concat", ["features", "column"], ["rows"], axis=-1),
    ]
    return graph_bytes("video_encoder", nodes, {"last": np.array([-1])}, layout)


def user_profile(layout: Layout = LAYOUT) -> bytes:
    """Give profile = the sum of each block's rows, and the length of the history beside it."""
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["history_rows", "clicks"], ["sums"], keepdims=0),
        node("ReduceSum", ["sums", "last"], ["of_block"], keepdims=1),
        node("Mul", ["of_block", "zero"], ["zeros"]),
        node("Cast", ["history_length"], ["number"], to=TensorProto.FLOAT),
        node("Reshape", ["number", "column"], ["length"]),
        node("Add", ["zeros", "length"], ["lengths"]),
        node("Concat", ["sums", "lengths"], ["profile"], axis=-1),
    ]
    constants = {
        "clicks": np.array([2]),
        "column": np.array([-1, 1, 1]),
        "last": np.array([-1]),
        "zero": np.array(0, np.float32),
    }
    return graph_bytes("user_profile", nodes, constants, layout)


def score_head(layout: Layout = LAYOUT, *, weight: float = 0.1) -> bytes:
    """Give logit = weight * (sum of the profile) * (sum of the row)."""
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["user_profile"], ["user"], keepdims=0),
        node("MatMul", ["candidate_rows", "ones"], ["column"]),
        node("Squeeze", ["column", "last"], ["sums"]),
        node("Mul", ["sums", "user"], ["product"]),
        node("Mul", ["product", "weight"], ["logit"]),
    ]
    constants = {
        "ones": np.ones((layout.row_dim, 1), np.float32),
        "last": np.array([-1]),
        "weight": np.array(weight, np.float32),
    }
    return graph_bytes("score_head", nodes, constants, layout)


@pytest.fixture(scope="session")
def draft() -> Draft:
    graphs = {
        "video_encoder": video_encoder(),
        "user_profile": user_profile(),
        "score_head": score_head(),
    }
    rng = np.random.default_rng(5)
    lengths = np.array([0, 1, 4])
    golden = Golden(
        lengths=lengths,
        history_features=rng.normal(size=(5, 3)).astype(np.float32),
        history_categories=np.array([0, 1, 2, 3, 4]),
        candidate_features=rng.normal(size=(3, 2, 3)).astype(np.float32),
        candidate_categories=np.array([[0, 4], [1, 3], [2, 2]]),
        logits=np.zeros((3, 2), np.float32),
    )
    return Draft("tiny", LAYOUT, graphs, replace(golden, logits=answers(golden)))


def answers(golden: Golden) -> np.ndarray:
    """The tiny model in numpy."""
    starts = np.concatenate([[0], np.cumsum(golden.lengths)])
    logits = []
    for user, length in enumerate(golden.lengths):
        clicks = slice(starts[user], starts[user + 1])
        profile = (
            golden.history_features[clicks].sum()
            + golden.history_categories[clicks].sum()
            + LAYOUT.filled_blocks(length) * length
        )
        rows = golden.candidate_features[user].sum(-1) + golden.candidate_categories[user]
        logits.append(0.1 * profile * rows)
    return np.array(logits, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def tiny_model(draft: Draft) -> Model:
    return Model(draft.graphs, draft.layout)


@pytest.fixture
def with_head(draft: Draft) -> Callable[[bytes], Draft]:
    """The draft with another score head."""
    return lambda graph: replace(draft, graphs={**draft.graphs, "score_head": graph})
