"""The JSON that describes a version: layout, tensors, hashes, metrics, provenance."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from model_store.errors import ManifestInvalidError

SCHEMA_VERSION: Final = 1
"""Rises whenever the meaning of a version directory changes."""

GRAPHS = ("video_encoder", "user_profile", "score_head")

_Positive = Annotated[int, Field(ge=1)]


class Layout(BaseModel):
    """The sizes both halves agree on.

    Attributes:
        feature_dim: F, width of a video's content feature.
        num_categories: C; category C itself, and any outside 0..C-1, means unknown.
        num_blocks: B, temporal blocks of a history.
        block_size: clicks per block; B x block_size clicks are visible.
        row_dim: R, width of what the video encoder makes of a video; opaque to the service.
        candidate_dim: C, leading part of a row that the head takes of a candidate, at most R.
        profile_dim: P, width of a block in a user profile; opaque to the service.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature_dim: _Positive
    num_categories: _Positive
    num_blocks: _Positive
    block_size: _Positive
    row_dim: _Positive
    candidate_dim: _Positive
    profile_dim: _Positive

    @model_validator(mode="after")
    def _check(self) -> Layout:
        if self.candidate_dim > self.row_dim:
            raise ValueError(f"candidate_dim {self.candidate_dim} is above row_dim {self.row_dim}")
        return self

    @property
    def history_length(self) -> int:
        """Clicks that a model of this layout sees at most."""
        return self.num_blocks * self.block_size

    def filled_blocks(self, clicks: int) -> int:
        """Blocks that hold a click, at least 1: what a profile is computed and kept for."""
        return max(1, -(-clicks // self.block_size))


class Tensor(BaseModel):
    """Name, element type and shape of a graph's input or output; a string is a dynamic size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int | str, ...]


class Graph(BaseModel):
    """The tensors of one graph, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Manifest(BaseModel):
    """What a version is, and how to know that it is whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    model_name: str
    created_at: str
    layout: Layout
    graphs: dict[str, Graph]
    golden_tolerance: Annotated[float, Field(gt=0, lt=1e-2)]
    sha256: dict[str, str]
    metrics: dict[str, float]
    provenance: dict[str, JsonValue]


def graph_tensors(layout: Layout) -> dict[str, Graph]:
    """Return the tensors that the three graphs of a layout must have (the treaty itself).

    N videos or candidates, U users, F, R, C, P as in :class:`Layout`, K the blocks that hold clicks,
    1 to num_blocks: blocks without a click are left out, a user without any has one of zeros.
    """
    rows: tuple[int | str, ...] = ("N", layout.row_dim)
    candidates: tuple[int | str, ...] = ("N", layout.candidate_dim)
    profile: tuple[int | str, ...] = ("K", layout.profile_dim)
    f32: Literal["float32"] = "float32"
    return {
        "video_encoder": Graph(
            inputs=(
                Tensor(name="features", dtype=f32, shape=("N", layout.feature_dim)),
                Tensor(name="category", dtype="int64", shape=("N",)),
            ),
            outputs=(Tensor(name="rows", dtype=f32, shape=rows),),
        ),
        "user_profile": Graph(
            inputs=(
                Tensor(
                    name="history_rows",
                    dtype=f32,
                    shape=("U", "K", layout.block_size, layout.row_dim),
                ),
                Tensor(name="history_length", dtype="int64", shape=("U",)),
            ),
            outputs=(Tensor(name="profile", dtype=f32, shape=("U", *profile)),),
        ),
        "score_head": Graph(
            inputs=(
                Tensor(name="user_profile", dtype=f32, shape=profile),
                Tensor(name="candidate_rows", dtype=f32, shape=candidates),
            ),
            outputs=(Tensor(name="logit", dtype=f32, shape=("N",)),),
        ),
    }


def parse_manifest(text: bytes, *, source: str) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestInvalidError: not JSON, unknown or missing keys, another schema version.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as exc:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in exc.errors()
        )
        raise ManifestInvalidError(
            f"{source} is no manifest of schema {SCHEMA_VERSION}: {faults}"
        ) from exc
    if manifest.graphs != graph_tensors(manifest.layout):
        raise ManifestInvalidError(
            f"{source}: the tensors of its graphs do not follow from its layout"
        )
    return manifest
