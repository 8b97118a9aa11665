"""The JSON that describes a version."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from model_store import (
    GRAPHS,
    Draft,
    Layout,
    Manifest,
    ManifestInvalidError,
    ModelStore,
    graph_tensors,
)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def version(store: ModelStore, draft: Draft) -> str:
    return store.publish(draft)


def test_a_manifest_describes_the_draft(store: ModelStore, draft: Draft, version: str) -> None:
    """Layout, tensors and every file's hash are written down."""
    manifest = store.manifest(version)

    assert manifest.layout == draft.layout
    assert manifest.graphs == graph_tensors(draft.layout)
    assert set(manifest.sha256) == {*(f"{name}.onnx" for name in GRAPHS), "golden.npz"}


def test_a_manifest_survives_json(store: ModelStore, version: str) -> None:
    """Writing and reading a manifest gives the same manifest."""
    manifest = store.manifest(version)

    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_history_length_is_all_blocks() -> None:
    """A model sees blocks times block size clicks."""
    layout = Layout(
        feature_dim=1,
        num_categories=1,
        num_blocks=8,
        block_size=20,
        row_dim=1,
        candidate_dim=1,
        profile_dim=1,
    )

    assert layout.history_length == 160


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m["layout"].update(depth=3), "layout.depth"),
        (lambda m: m.update(schema_version=2), "schema_version"),
        (lambda m: m.pop("sha256"), "sha256"),
        (lambda m: m["layout"].update(row_dim=0), "layout.row_dim"),
        (lambda m: m.update(golden_tolerance=1.0), "golden_tolerance"),
        (lambda m: m["layout"].update(row_dim=9), "do not follow from its layout"),
        (lambda m: m.update(version="another"), "describes version another"),
        (lambda m: m["sha256"].pop("golden.npz"), "golden.npz"),
    ],
)
def test_a_foreign_manifest_is_refused(
    store: ModelStore, version: str, edit: Edit, names: str
) -> None:
    """A manifest of another schema is refused, and the error names the fault."""
    path = store.root / "versions" / version / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))

    with pytest.raises(ManifestInvalidError, match=names):
        store.open(version)


def test_a_damaged_manifest_is_refused(store: ModelStore, version: str) -> None:
    """A manifest that is cut off is refused as such."""
    path = store.root / "versions" / version / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ManifestInvalidError, match=r"manifest\.json is no manifest"):
        store.open(version)
