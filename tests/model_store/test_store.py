"""Versions on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_store import (
    Draft,
    GoldenMismatchError,
    GraphInvalidError,
    HashMismatchError,
    ManifestInvalidError,
    ModelStore,
    ModelStoreError,
    VersionNotFoundError,
)

FILES = ("video_encoder.onnx", "user_profile.onnx", "score_head.onnx", "golden.npz")


def folder(store: ModelStore, version: str) -> Path:
    return store.root / "versions" / version


def test_what_is_published_can_be_opened(store: ModelStore, draft: Draft) -> None:
    """A published version opens as the model that was drafted."""
    version = store.publish(replace(draft, metrics={"auc": 0.6}, provenance={"seed": 3}))
    opened = store.open(version)

    assert opened.manifest.version == version
    assert opened.manifest.metrics == {"auc": 0.6}
    assert opened.manifest.provenance == {"seed": 3}
    assert opened.model.layout == draft.layout
    assert opened.model.prove(draft.golden, tolerance=1e-5) <= 1e-5


def test_versions_are_listed_oldest_first(store: ModelStore, draft: Draft) -> None:
    """Publishing the same draft again makes a new version, listed after the old one."""
    assert store.versions() == []
    published = [store.publish(draft) for _ in range(3)]

    assert store.versions() == published


def test_publishing_promotes_nothing(store: ModelStore, draft: Draft) -> None:
    """Nothing is current before a promotion, and the error says how to promote."""
    store.publish(draft)

    with pytest.raises(VersionNotFoundError, match="training promote"):
        store.current()


def test_the_promoted_version_is_current(store: ModelStore, draft: Draft) -> None:
    """Promotion moves the pointer, forward and back, and open follows it."""
    old, new = store.publish(draft), store.publish(draft)
    store.promote(new)
    assert store.open().manifest.version == new
    store.promote(old)

    assert store.current() == old
    assert store.open().manifest.version == old
    assert sorted(p.name for p in store.root.iterdir()) == ["CURRENT", "versions"]


@pytest.mark.parametrize("name", FILES)
def test_a_tampered_file_is_refused(store: ModelStore, draft: Draft, name: str) -> None:
    """One changed byte is found, and the error names the file."""
    path = folder(store, store.publish(draft)) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(HashMismatchError, match=name):
        store.open(path.parent.name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(store: ModelStore, draft: Draft, name: str) -> None:
    """A file that is gone is named."""
    path = folder(store, store.publish(draft)) / name
    path.unlink()

    with pytest.raises(HashMismatchError, match=f"{name} is missing"):
        store.open(path.parent.name)


def test_a_half_written_version_is_refused(store: ModelStore, draft: Draft) -> None:
    """A folder without a manifest is neither listed nor opened."""
    version = store.publish(draft)
    half = folder(store, "half")
    shutil.copytree(folder(store, version), half)
    (half / "manifest.json").unlink()

    assert store.versions() == [version]
    with pytest.raises(ManifestInvalidError, match="half has no manifest"):
        store.open("half")


def test_a_renamed_version_is_refused(store: ModelStore, draft: Draft) -> None:
    """A version that was copied under another name is refused, and both names are given."""
    version = store.publish(draft)
    shutil.copytree(folder(store, version), folder(store, "copy"))

    with pytest.raises(ManifestInvalidError, match=f"copy.*describes version {version}"):
        store.open("copy")


def test_an_unknown_version_is_refused(store: ModelStore, draft: Draft) -> None:
    """The error names what was asked for and what there is."""
    version = store.publish(draft)

    with pytest.raises(VersionNotFoundError, match=f"v9 is not in .*{version}"):
        store.open("v9")


@pytest.mark.parametrize("name", ["../v", "a/b", "", ".staging", "v\n", "v" * 129])
def test_a_path_is_no_version_name(store: ModelStore, name: str) -> None:
    """A name that could leave the store is refused before any file is touched."""
    with pytest.raises(VersionNotFoundError, match="is no version name"):
        store.promote(name)


@pytest.mark.parametrize(
    ("graph", "fault"),
    [(b"not a graph", "cannot be loaded"), (None, "score_head inputs are")],
)
def test_wrong_graphs_are_not_published(
    store: ModelStore,
    draft: Draft,
    with_head: Callable[[bytes], Draft],
    graph: bytes | None,
    fault: str,
) -> None:
    """A graph that does not load, or has other tensors, is refused before anything is written."""
    wrong = draft.graphs["video_encoder"] if graph is None else graph

    with pytest.raises(GraphInvalidError, match=fault):
        store.publish(with_head(wrong))
    assert not store.root.exists()


def test_another_layout_is_refused(store: ModelStore, draft: Draft) -> None:
    """Graphs of another width than the layout's are refused with both shapes."""
    layout = draft.layout.model_copy(update={"feature_dim": 7})

    with pytest.raises(GraphInvalidError, match=r"video_encoder inputs.*3.*7"):
        store.publish(replace(draft, layout=layout))


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_wrong_answers_are_not_published(store: ModelStore, draft: Draft, wrong: float) -> None:
    """Graphs that do not answer as the trainer did are refused, with the deviation."""
    golden = replace(draft.golden, logits=draft.golden.logits + np.float32(wrong))

    with pytest.raises(GoldenMismatchError, match=r"golden user 0 \(0 clicks\).*(0\.001|nan)"):
        store.publish(replace(draft, golden=golden))
    assert store.versions() == []


def test_a_refused_promotion_moves_nothing(store: ModelStore, draft: Draft) -> None:
    """When the new version cannot be opened, the old one stays current."""
    old, new = store.publish(draft), store.publish(draft)
    store.promote(old)
    (folder(store, new) / "score_head.onnx").write_bytes(b"")

    with pytest.raises(HashMismatchError):
        store.promote(new)
    assert store.current() == old


def test_a_failed_publish_leaves_nothing(store: ModelStore, draft: Draft) -> None:
    """When writing fails, neither a version nor a staging folder stays behind."""
    store.publish(draft)
    before = sorted((store.root / "versions").iterdir())

    with pytest.raises(ModelStoreError, match="exists already"):
        store._write_version(before[0].name, {"manifest.json": b"{}"})
    with pytest.raises(TypeError):
        store._write_version("broken", {"a.onnx": b"1", "b.onnx": "text"})  # type: ignore[dict-item]
    assert sorted((store.root / "versions").iterdir()) == before


def test_a_crashed_publish_is_invisible(store: ModelStore, draft: Draft) -> None:
    """A staging folder that a crash left behind is no version."""
    version = store.publish(draft)
    staging = store.root / "versions" / ".staging-0123"
    shutil.copytree(folder(store, version), staging)

    assert store.versions() == [version]
