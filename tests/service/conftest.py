"""A tiny model whose answers depend on history and candidate, a real Redis, a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_store import Draft, Golden, Layout, Model, ModelStore, graph_tensors
from service.embedded_redis import embedded_redis

ROOT = Path(__file__).parents[2]
LAYOUT = Layout(
    feature_dim=3,
    num_categories=4,
    num_blocks=4,
    block_size=40,
    row_dim=4,
    candidate_dim=4,
    profile_dim=5,
)
# Nobody balances the load of a test: its services need not wait for one to look elsewhere.
QUICK = {"CTR_DRAIN_NOTICE_SECONDS": "0"}
_DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def graph_bytes(
    name: str, nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> bytes:
    tensors = graph_tensors(LAYOUT)[name]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, _DTYPES[t.dtype], t.shape) for t in side]
        for side in (tensors.inputs, tensors.outputs)
    )
    initializers = [onnx.numpy_helper.from_array(a, key) for key, a in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def tiny_graphs(weight: float) -> dict[str, bytes]:
    """Rows = [features, category]; profile = [mean row of a block, clicks]; logit = a product."""
    node = helper.make_node
    encoder = [
        node("Cast", ["category"], ["number"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["number", "last"], ["column"]),
        node("Concat", ["features", "column"], ["rows"], axis=-1),
    ]
    profile = [
        node("ReduceMean", ["history_rows", "clicks"], ["means"], keepdims=0),
        node("ReduceMean", ["means", "features"], ["of_block"], keepdims=1),
        node("Mul", ["of_block", "zero"], ["zeros"]),
        node("Cast", ["history_length"], ["number"], to=TensorProto.FLOAT),
        node("Reshape", ["number", "column"], ["length"]),
        node("Add", ["zeros", "length"], ["lengths"]),
        node("Concat", ["means", "lengths"], ["profile"], axis=-1),
    ]
    head = [
        node("MatMul", ["user_profile", "user_weights"], ["users"]),
        node("ReduceSum", ["users", "blocks"], ["user"], keepdims=0),
        node("MatMul", ["candidate_rows", "row_weights"], ["column"]),
        node("Squeeze", ["column", "last"], ["sums"]),
        node("Mul", ["sums", "user"], ["product"]),
        node("Add", ["product", "sums"], ["both"]),
        node("Mul", ["both", "weight"], ["logit"]),
    ]
    last = np.array([-1])
    f32 = np.float32
    return {
        "video_encoder": graph_bytes("video_encoder", encoder, {"last": last}),
        "user_profile": graph_bytes(
            "user_profile",
            profile,
            {
                "clicks": np.array([2]),
                "column": np.array([-1, 1, 1]),
                "features": np.array([-1]),
                "zero": np.array(0, f32),
            },
        ),
        "score_head": graph_bytes(
            "score_head",
            head,
            {
                "user_weights": np.array([[1], [-2], [3], [0.5], [0.01]], f32),
                "row_weights": np.array([[1], [0.5], [-1], [0.25]], f32),
                "blocks": np.array([1]),
                "last": last,
                "weight": np.array(weight, f32),
            },
        ),
    }


def tiny_draft(weight: float = 0.1) -> Draft:
    graphs = tiny_graphs(weight)
    rng = np.random.default_rng(3)
    features = rng.normal(size=(2, 3)).astype(np.float32)
    categories = np.array([1, 4])
    model = Model(graphs, LAYOUT)
    rows = model.encode_videos(features, categories)
    logits = [model.logits(model.profile(rows[:n]), rows) for n in (0, 2)]
    golden = Golden(
        lengths=np.array([0, 2]),
        history_features=features,
        history_categories=categories,
        candidate_features=np.stack([features, features]),
        candidate_categories=np.stack([categories, categories]),
        logits=np.stack(logits),
    )
    return Draft("tiny", LAYOUT, graphs, golden)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    store.promote(store.publish(tiny_draft()))
    return store


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@dataclass(frozen=True)
class Started:
    """A service in a process of its own."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def started(store: ModelStore, data_dir: Path, *flags: str) -> Iterator[Started]:
    port = free_port()
    command = [sys.executable, "-m", "service", "--model-store", str(store.root)]
    command += ["--port", str(port), "--data-dir", str(data_dir), *flags]
    log = data_dir / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env={**QUICK, **os.environ}
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            def up() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return client.get("/health/live").is_success
                except httpx.TransportError:
                    return False

            wait_for(up)
            yield Started(client, process, log)
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()


@contextmanager
def serving(store: ModelStore, data_dir: Path, *flags: str) -> Iterator[httpx.Client]:
    with started(store, data_dir, *flags) as service:
        yield service.client


@pytest.fixture(scope="session")
def client(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Two workers on one embedded Redis."""
    with serving(store, tmp_path_factory.mktemp("served"), "--workers", "2") as client:
        yield client


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens, for workers to take from."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock
