"""The treaty between training and serving: history, layout, graphs and versions.

Both halves import this package's surface; it imports neither of them.
"""

from model_store.compiled_head import COMPILED_HEAD, CompiledHead, CompiledPart
from model_store.device import CPU, EVERY_HEAD, GRAPHS_ONLY, Device, find_device
from model_store.errors import (
    DeviceError,
    GoldenMismatchError,
    GraphInvalidError,
    HashMismatchError,
    ManifestInvalidError,
    ModelStoreError,
    VersionNotFoundError,
)
from model_store.graphs import Golden, Model, click_probabilities
from model_store.head_weights import HeadWeights
from model_store.history import Click, FloatArray, IntArray, blocks_of, visible_history
from model_store.manifest import GRAPHS, SCHEMA_VERSION, Layout, Manifest, graph_tensors
from model_store.store import Draft, ModelStore, OpenVersion

__all__ = [
    "COMPILED_HEAD",
    "CPU",
    "EVERY_HEAD",
    "GRAPHS",
    "GRAPHS_ONLY",
    "SCHEMA_VERSION",
    "Click",
    "CompiledHead",
    "CompiledPart",
    "Device",
    "DeviceError",
    "Draft",
    "FloatArray",
    "Golden",
    "GoldenMismatchError",
    "GraphInvalidError",
    "HashMismatchError",
    "HeadWeights",
    "IntArray",
    "Layout",
    "Manifest",
    "ManifestInvalidError",
    "Model",
    "ModelStore",
    "ModelStoreError",
    "OpenVersion",
    "VersionNotFoundError",
    "blocks_of",
    "click_probabilities",
    "find_device",
    "graph_tensors",
    "visible_history",
]
