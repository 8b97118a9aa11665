"""The authors' variables, by name, poured into our network; and their TensorFlow checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from training.errors import DataError
from training.models.thacil import Thacil, ThacilShape

Arrays = Mapping[str, npt.NDArray[np.float32]]

_LOCAL = "temporal_hierarchical_attention/intra_attention"
_FORWARD = "temporal_hierarchical_attention/inter_attention"
_NORM = "temporal_hierarchical_attention/feature_fusion/ln"
_HEAD = "micro_video_click_through_prediction"
_TARGET = f"{_HEAD}/vanilla_attention"


def read_checkpoint(prefix: str) -> dict[str, npt.NDArray[np.float32]]:
    """Read a TensorFlow 1 checkpoint: variable name (without ``:0``) -> array.

    Args:
        prefix: path without ``.index`` or ``.data-...``.

    Raises:
        DataError: tensorflow is not installed, or there is no such checkpoint.
    """
    try:
        from tensorflow.train import load_checkpoint  # noqa: PLC0415  an optional extra
    except ImportError as exc:
        raise DataError(
            "reading a TensorFlow checkpoint needs tensorflow: pip install 'thacil-ctr[checkpoint]'"
        ) from exc
    try:
        reader = load_checkpoint(prefix)
    # TensorFlow raises classes of its own here, which differ between its versions.
    except Exception as exc:
        raise DataError(f"{prefix} is no TensorFlow checkpoint prefix: {exc}") from exc
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def network_from_arrays(
    arrays: Arrays, *, num_heads: int | None = None, num_blocks: int = 8, block_size: int = 20
) -> Thacil:
    """Build the network whose parameters are the reference's variables.

    Args:
        arrays: variables in x @ W layout, any common prefix before ``item_embedding`` allowed.
        num_heads: derived from the shared head projection when not given.
        num_blocks: temporal blocks; not stored in the variables.
        block_size: clicks per block; not stored in the variables.

    Raises:
        DataError: a variable is missing or has a shape that does not fit.
    """
    found = _strip_prefix(arrays)
    categories = found["category_embedding"]
    feature_dim, item_dim = found["item_embedding/w1"].shape
    category_dim = categories.shape[1]
    heads = (item_dim + category_dim) // found[f"{_FORWARD}/w_p"].shape[0]
    network = Thacil(
        ThacilShape(
            feature_dim=feature_dim,
            num_categories=categories.shape[0],
            item_dim=item_dim,
            category_dim=category_dim,
            num_heads=num_heads or heads,
            num_blocks=num_blocks,
            block_size=block_size,
            hidden_dim=found[f"{_HEAD}/w1"].shape[1],
        )
    )
    state = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in _state(found)}
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        raise DataError(f"the variables do not fit the network: {exc}") from exc
    return network.eval()


def _strip_prefix(arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    marker = "item_embedding/w1"
    prefixes = [name[: -len(marker)] for name in arrays if name.endswith(marker)]
    if len(prefixes) != 1:
        raise DataError(f"found {len(prefixes)} variables named .../{marker}, expected one")
    found = {}
    for name, array in arrays.items():
        short = name.removeprefix(prefixes[0])
        short = "category_embedding" if "category_embedding" in short else short
        if "Adam" not in short:
            found[short] = array
    missing = sorted(_required() - set(found))
    if missing:
        raise DataError(f"the checkpoint has no variable {', '.join(missing)}")
    return found


def _required() -> set[str]:
    attention = ("x_w1", "x_b1", "q_w1", "q_b1", "w2")
    places = (f"{_LOCAL}/cate_attention", f"{_LOCAL}/item_attention", _TARGET)
    names = {f"{place}/{part}" for place in places for part in attention}
    names |= {f"{_FORWARD}/{part}" for part in ("w_q", "w_k", "w_v", "w_p", "b")}
    names |= {f"{_NORM}/gamma", f"{_NORM}/beta"}
    names |= {f"{_HEAD}/{part}" for part in ("w1", "b1", "w2", "b2")}
    return names | {"category_embedding", "item_embedding/w1"}


def _state(found: Arrays) -> list[tuple[str, npt.NDArray[np.float32]]]:
    categories = found["category_embedding"]
    state = [
        ("item_projection.weight", found["item_embedding/w1"].T),
        (
            "category_embedding.weight",
            np.concatenate([categories, np.zeros((1, categories.shape[1]), np.float32)]),
        ),
        ("self_attention.bias", found[f"{_FORWARD}/b"].reshape(-1)),
        ("norm.weight", found[f"{_NORM}/gamma"]),
        ("norm.bias", found[f"{_NORM}/beta"]),
        ("hidden.weight", found[f"{_HEAD}/w1"].T),
        ("hidden.bias", found[f"{_HEAD}/b1"]),
        ("output.weight", found[f"{_HEAD}/w2"].T),
        ("output.bias", found[f"{_HEAD}/b2"].reshape(-1)),
    ]
    for ours, theirs in (("query", "w_q"), ("key", "w_k"), ("value", "w_v"), ("score", "w_p")):
        state.append((f"self_attention.{ours}.weight", found[f"{_FORWARD}/{theirs}"].T))
    for ours, place in (
        ("category_attention", f"{_LOCAL}/cate_attention"),
        ("item_attention", f"{_LOCAL}/item_attention"),
        ("target_attention", _TARGET),
    ):
        state += [
            (f"{ours}.value.weight", found[f"{place}/x_w1"].T),
            (f"{ours}.value.bias", found[f"{place}/x_b1"] + found[f"{place}/q_b1"]),
            (f"{ours}.query.weight", found[f"{place}/q_w1"].T),
            (f"{ours}.score.weight", found[f"{place}/w2"].T),
        ]
    return state
