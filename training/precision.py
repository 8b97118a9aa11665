"""A version whose weights take half the room, if that costs no ranking.

Weights are rounded to float16 in the network itself; it is then exported, proved and served like
any other, and computes in float32. What its graphs hold is stored as it is, in half the bytes. So
nothing that is promised of a version gives way: golden answers are those of the rounded network,
and a tile's answer does not depend on its neighbours, as it would where activations are rounded
by the largest of a run. Whether it may be served at all is decided by validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import torch

from training.compact import folded
from training.config import RunConfig
from training.errors import PrecisionError
from training.evaluate import measure, score, validation_examples
from training.interactions import ClickLog, load_click_log
from training.models.thacil import Thacil
from training.split import Split

Precision = Literal["float32", "float16"]

LIMIT: Final = 1e-4
"""The gAUC on validation has to move by less."""

_WORTH_STORING: Final = 256
"""Numbers in a tensor, below which two bytes each are not worth a node of the graph."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """What rounding the weights did to validation.

    Attributes:
        gauc: of the rounded network.
        float32_gauc: of the network as it was trained.
    """

    gauc: float
    float32_gauc: float

    @property
    def moved(self) -> float:
        """How far it moved, either way."""
        return abs(self.gauc - self.float32_gauc)

    def __str__(self) -> str:
        return (
            f"gAUC on validation {self.gauc:.6f}, {self.moved:.2g} from {self.float32_gauc:.6f} in "
            f"float32; the limit is {LIMIT}"
        )


def lowered(
    config: RunConfig, network: Thacil, data: Path | None, *, cache: Path | None = None
) -> tuple[Thacil, Rounded]:
    """Round a run's network, if the validation split of its log allows it.

    Args:
        config: of the run.
        network: as it was trained.
        data: the directory of the log; there is no doing without it.
        cache: where the columns of the log are kept, if not beside it.

    Raises:
        PrecisionError: no log is given, a weight is beyond float16, or gAUC moves too far.
    """
    if data is None:
        raise PrecisionError(
            "a lower precision needs --data, the log of the run: it is exported if gAUC on the "
            f"validation split moves by less than {LIMIT}"
        )
    rounded = halved(network)
    return rounded, check_precision(config, network, rounded, load_click_log(data, cache=cache))


def halved(network: Thacil) -> Thacil:
    """Return a copy whose weights are float16 numbers.

    Raises:
        PrecisionError: a weight is beyond float16.
    """
    # What is exported is the sum of two parts, and rounded parts have no rounded sum.
    rounded = folded(network)
    largest = float(torch.finfo(torch.float16).max)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if not (worst := float(weight.abs().max())) <= largest:
                raise PrecisionError(
                    f"{name} holds {worst:.4g}, float16 ends at {largest:.0f}: export in float32"
                )
            weight.copy_(weight.half().float())
    return rounded


def check_precision(
    config: RunConfig, network: Thacil, rounded: Thacil, log: ClickLog, *, limit: float = LIMIT
) -> Rounded:
    """Score the validation split of a run's log with both networks.

    Raises:
        PrecisionError: gAUC moves by ``limit`` or more.
    """
    split = Split.of(config, np.bincount(log.train.item_ids) > 0, log.train)
    validates = split.validates(log.train)
    examples = validation_examples(config, log, validates, split.held)
    before, after = (
        measure(validates, score(each, examples))["gauc"] for each in (network, rounded)
    )
    found = Rounded(gauc=after, float32_gauc=before)
    # Written so that NaN is refused, too.
    if not found.moved < limit:
        raise PrecisionError(
            f"gAUC on validation moves by {found.moved:.2g}, from {before:.6f} to {after:.6f}; a "
            f"lower precision may move it by less than {limit:.2g}: export in float32, which is "
            "the default"
        )
    return found


def store_halves(graph: bytes) -> bytes:
    """Store a graph's float16 numbers in two bytes each; what it computes stays the same bits.

    A tensor that holds any other number is left alone. ONNX Runtime widens the others when it
    loads the graph.
    """
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if array.size < _WORTH_STORING or not np.array_equal(half.astype(np.float32), array):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
        cast = onnx.helper.make_node("Cast", [f"{name}.float16"], [name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    return model.SerializeToString()
