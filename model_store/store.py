"""Versions on disk: publish, promote, open, verify.

    ROOT/versions/VERSION/{manifest.json, video_encoder.onnx, user_profile.onnx,
                           score_head.onnx, golden.npz}
    ROOT/CURRENT                     one line, the promoted version

A version directory appears whole or not at all, and never changes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
from pydantic import JsonValue

from model_store.device import CPU, EVERY_HEAD, Device
from model_store.errors import (
    HashMismatchError,
    ManifestInvalidError,
    ModelStoreError,
    VersionNotFoundError,
)
from model_store.graphs import Golden, Model
from model_store.manifest import (
    GRAPHS,
    SCHEMA_VERSION,
    Layout,
    Manifest,
    graph_tensors,
    parse_manifest,
)

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FILES = (*(f"{name}.onnx" for name in GRAPHS), "golden.npz")


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that is ready to become a version.

    Attributes:
        model_name: for people and metrics, e.g. ``thacil``.
        layout: sizes of the graphs.
        graphs: ONNX bytes of each graph of the treaty.
        golden: cases that every opener replays.
        golden_tolerance: largest deviation of a logit that an opener accepts.
        metrics: offline quality by name.
        provenance: where the model comes from; JSON values, no local paths.
    """

    model_name: str
    layout: Layout
    graphs: Mapping[str, bytes]
    golden: Golden
    golden_tolerance: float = 5e-5
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """A version that was verified and is ready to answer."""

    manifest: Manifest
    model: Model


class ModelStore:
    """A directory of published versions, one of them promoted."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def publish(self, draft: Draft) -> str:
        """Prove a draft, write it as a new version and return the version's name.

        The golden cases are replayed first: what does not answer as the trainer did is not
        published. The version is staged, synced and renamed, so that a crash leaves none.

        Raises:
            GraphInvalidError: a graph does not load or has the wrong tensors.
            GoldenMismatchError: the graphs do not give the golden answers.
        """
        for device in EVERY_HEAD:
            model = Model(draft.graphs, draft.layout, device=device)
            model.prove(draft.golden, tolerance=draft.golden_tolerance)
        files = {f"{name}.onnx": draft.graphs[name] for name in GRAPHS}
        files["golden.npz"] = _golden_bytes(draft.golden)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        now = datetime.now(UTC)
        digest = hashlib.sha256("".join(hashes[name] for name in _FILES).encode()).hexdigest()
        stamp = now.strftime("%Y%m%dT%H%M%S%fZ")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            version=f"{stamp}-{draft.model_name}-{digest[:8]}",
            model_name=draft.model_name,
            created_at=now.isoformat(),
            layout=draft.layout,
            graphs=graph_tensors(draft.layout),
            golden_tolerance=draft.golden_tolerance,
            sha256=hashes,
            metrics=dict(draft.metrics),
            provenance=dict(draft.provenance),
        )
        files["manifest.json"] = manifest.model_dump_json(indent=2).encode()
        self._write_version(manifest.version, files)
        return manifest.version

    def promote(self, version: str) -> None:
        """Make a version the current one, after opening it and replaying its golden cases.

        One atomic pointer moves; promoting an older version is the way back.

        Raises:
            ModelStoreError: the version cannot be opened; the pointer stays where it was.
        """
        self.open(version)
        staged = self.root / f".CURRENT-{uuid4().hex}"
        _write_synced(staged, f"{version}\n".encode())
        staged.replace(self.root / "CURRENT")
        _sync_directory(self.root)

    def current(self) -> str:
        """Return the promoted version.

        Raises:
            VersionNotFoundError: nothing was promoted yet.
        """
        try:
            return (self.root / "CURRENT").read_text().strip()
        except FileNotFoundError:
            raise VersionNotFoundError(
                f"no version is promoted in {self.root}: "
                f"python -m training promote VERSION --store {self.root}"
            ) from None

    def versions(self) -> list[str]:
        """Return the published versions, oldest first."""
        directory = self.root / "versions"
        if not directory.is_dir():
            return []
        # A crash may leave a staging folder behind; its name is no version's.
        return sorted(
            p.name
            for p in directory.iterdir()
            if _VERSION.fullmatch(p.name) and (p / "manifest.json").is_file()
        )

    def manifest(self, version: str) -> Manifest:
        """Read the manifest of a version without opening its graphs.

        Raises:
            VersionNotFoundError: no such version.
            ManifestInvalidError: its manifest cannot be read or names another version.
        """
        path = self._path(version) / "manifest.json"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            if path.parent.is_dir():
                raise ManifestInvalidError(
                    f"version {version} has no manifest.json: it was not written by publish"
                ) from None
            raise VersionNotFoundError(
                f"version {version} is not in {self.root}; there are {self.versions() or 'none'}"
            ) from None
        manifest = parse_manifest(text, source=str(path))
        if manifest.version != version:
            raise ManifestInvalidError(f"{path} describes version {manifest.version}")
        return manifest

    def open(
        self,
        version: str | None = None,
        *,
        device: Device = CPU,
    ) -> OpenVersion:
        """Open a version (the current one by default): hashes, tensors and golden answers checked.

        Raises:
            VersionNotFoundError: no such version.
            ManifestInvalidError: foreign or damaged manifest.
            HashMismatchError: a file is missing or changed.
            GraphInvalidError: a graph does not load or has other tensors.
            GoldenMismatchError: the answers differ from the trainer's on this device.
        """
        version = self.current() if version is None else version
        manifest = self.manifest(version)
        files = self._read_files(manifest)
        model = Model(
            {name: files[f"{name}.onnx"] for name in GRAPHS}, manifest.layout, device=device
        )
        with np.load(io.BytesIO(files["golden.npz"])) as arrays:
            golden = Golden(**{name: arrays[name] for name in Golden.__slots__})
        model.prove(golden, tolerance=manifest.golden_tolerance)
        return OpenVersion(manifest, model)

    def _read_files(self, manifest: Manifest) -> dict[str, bytes]:
        if set(manifest.sha256) != set(_FILES):
            raise ManifestInvalidError(
                f"version {manifest.version} lists {sorted(manifest.sha256)}, "
                f"a version has {sorted(_FILES)}"
            )
        files: dict[str, bytes] = {}
        for name, expected in manifest.sha256.items():
            path = self._path(manifest.version) / name
            try:
                files[name] = path.read_bytes()
            except FileNotFoundError:
                raise HashMismatchError(f"{path} is missing: publish the model again") from None
            actual = hashlib.sha256(files[name]).hexdigest()
            if actual != expected:
                raise HashMismatchError(
                    f"{path} has SHA-256 {actual}, published was {expected}: publish it again"
                )
        return files

    def _path(self, version: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise VersionNotFoundError(
                f"{version!r} is no version name: letters, digits, '.', '_' and '-', at most 128"
            )
        return self.root / "versions" / version

    def _write_version(self, version: str, files: Mapping[str, bytes]) -> None:
        target = self._path(version)
        staging = target.parent / f".staging-{uuid4().hex}"
        staging.mkdir(parents=True)
        try:
            for name, data in files.items():
                _write_synced(staging / name, data)
            _sync_directory(staging)
            if target.exists():
                raise ModelStoreError(f"version {version} exists already, versions never change")
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _sync_directory(target.parent)


def _golden_bytes(golden: Golden) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **asdict(golden))
    return buffer.getvalue()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
