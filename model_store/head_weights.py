"""The score head as numbers: what its graph computes, for whoever computes it otherwise.

They travel in the graph's own metadata, so that no version can have one head's graph and another's
numbers, and whoever knows nothing of them reads the graph as ever.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from model_store.errors import GraphInvalidError
from model_store.history import FloatArray
from model_store.manifest import Layout

_PREFIX: Final = "score_head."
_FORMAT_KEY: Final = f"{_PREFIX}format"
_FORMAT: Final = "1"
"""Another one wherever what the numbers mean, or which there are, is another."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A score head that weighs K blocks of a user for each candidate (Chen et al., equations 9 to 12).

    H attention units, D user and item width, E hidden units. A candidate's row is its query [H],
    its half of the hidden layer [E] and, with ``interaction``, itself [D]. Of user blocks u [K, D]::

        scores[k] = score @ (relu(key @ u[k] + query) - relu(key @ u[0] + query))
        user = sum(exp(scores) * u) / sum(exp(scores))          over k, each feature by itself
        logit = output @ relu(hidden @ user + interaction @ (user * candidate) + half) + bias

    Attributes:
        key: [H, D], of the user's blocks.
        score: [D, H]; no scores of two blocks may be further apart than 80.
        hidden: [E, D], the user's half of the hidden layer.
        interaction: [E, D], or [0, D] where there is none.
        output: [E].
        bias: [].
    """

    key: FloatArray
    score: FloatArray
    hidden: FloatArray
    interaction: FloatArray
    output: FloatArray
    bias: FloatArray

    def check(self, layout: Layout) -> None:
        """Make sure that they are of a layout, and finite.

        Raises:
            GraphInvalidError: they are not.
        """
        # No length at all gets a shape that is refused.
        units, hidden, rows = (
            array.shape[0] if array.ndim else 0
            for array in (self.key, self.hidden, self.interaction)
        )
        width, interacts = layout.profile_dim, rows > 0
        expected: dict[str, tuple[int, ...]] = {
            "key": (units, width),
            "score": (width, units),
            "hidden": (hidden, width),
            "interaction": (hidden if interacts else 0, width),
            "output": (hidden,),
            "bias": (),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise GraphInvalidError(
                    f"the score head's {name} is {array.dtype} {array.shape}, must be finite "
                    f"float32 {shape}: publish the model again"
                )
        row = units + hidden + (width if interacts else 0)
        if row != layout.candidate_dim:
            raise GraphInvalidError(
                f"the score head's numbers take {row} of a candidate's row, the layout says "
                f"{layout.candidate_dim}: publish the model again"
            )

    def to_metadata(self) -> dict[str, str]:
        """Write them down for a graph's metadata."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        written = {f"{_PREFIX}{name}": _text(array) for name, array in arrays.items()}
        return {_FORMAT_KEY: _FORMAT, **written}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], layout: Layout) -> HeadWeights | None:
        """Read them from a graph's metadata, if they are there, in a form that is known here.

        Raises:
            GraphInvalidError: they cannot be read, or are not of the layout.
        """
        # Of a head that came after this was written the graph can be run all the same.
        if metadata.get(_FORMAT_KEY) != _FORMAT:
            return None
        texts = {field.name: metadata.get(f"{_PREFIX}{field.name}") for field in fields(cls)}
        given = {name: text for name, text in texts.items() if text is not None}
        if absent := texts.keys() - given.keys():
            raise GraphInvalidError(
                f"of the score head's numbers {', '.join(sorted(absent))} are missing: publish the "
                "model again"
            )
        found = cls(**{name: _array(name, text) for name, text in given.items()})
        found.check(layout)
        return found


def _text(array: FloatArray) -> str:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    # Weights that were rounded take half the room.
    exact = np.array_equal(half.astype(np.float32), array)
    buffer = io.BytesIO()
    np.save(buffer, half if exact else array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def _array(name: str, text: str) -> FloatArray:
    try:
        raw = io.BytesIO(base64.b64decode(text, validate=True))
        array = np.asarray(np.lib.format.read_array(raw, allow_pickle=False), order="C")
    except Exception as exc:  # a damaged header is a fault of many kinds
        raise GraphInvalidError(
            f"the score head's {name} cannot be read, publish the model again: {exc}"
        ) from exc
    widened: FloatArray = array.astype(np.float32) if array.dtype == np.float16 else array
    return widened
