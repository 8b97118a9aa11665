"""The score head compiled: the graph's answers, to rounding, in 0.4 to 0.7 of its time.

``_head.cpp`` is built where there is a compiler when this is installed, and used on x86-64
processors that have registers wide enough for eight candidates (AVX2) or sixteen (AVX-512).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_store.head_weights import HeadWeights
from model_store.history import FloatArray

_INTERFACE: Final = 1
"""Of the compiled part; the number stands in ``_head.cpp``, too."""
_MOST_UNITS: Final = {512: 1 << 16, 256: 64}
"""Attention units up to which a way beats ONNX Runtime. What is kept of them must stay in a core's
first cache where registers are few: with 64 units 256 bits take 0.7 of the graph's time, with 96
1.5."""


@dataclass(frozen=True, slots=True)
class CompiledPart:
    """What was found of the compiled part.

    Attributes:
        module: it; nothing where it is not there.
        ways: widths of registers, in bits, that it can use here, the widest first.
        why_not: why it cannot be used; empty where it can.
    """

    module: Any
    ways: Sequence[int]
    why_not: str


def _find() -> CompiledPart:
    try:
        from model_store import _head  # noqa: PLC0415  only where it was built
    except ImportError as exc:
        return CompiledPart(None, (), str(exc))
    # One that was built before this was updated lies where the new one would.
    if (built := _head.INTERFACE) != _INTERFACE:
        why = f"it was built for interface {built}, not {_INTERFACE}: install again"
        return CompiledPart(None, (), why)
    ways = _head.ways()
    return CompiledPart(_head, ways, "" if ways else "this processor has no AVX2")


COMPILED_HEAD: Final = _find()
"""Looked for once, when this is imported."""


class CompiledHead:
    """Scores candidates of a user. Safe to call from several threads.

    Nobody may change the arrays that are given while it works: it does without the interpreter's lock.

    A candidate's logit is the same, bit for bit, wherever it stands and whatever else is scored.

    Args:
        weights: of the head.
        way: width of the registers in bits, one of ``COMPILED_HEAD.ways``.
    """

    def __init__(self, weights: HeadWeights, way: int) -> None:
        self.way = way
        interaction = weights.interaction if len(weights.interaction) else None
        self._score = COMPILED_HEAD.module.score
        self._head = COMPILED_HEAD.module.prepare(
            weights.key,
            weights.score,
            weights.hidden,
            interaction,
            weights.output,
            float(weights.bias),
        )

    @classmethod
    def of(cls, weights: HeadWeights, bits: int | None = None) -> CompiledHead | None:
        """Return it for registers of so many bits, 0 for none.

        If left out, the fastest there is; nothing where the graph is as fast.
        """
        if bits is not None:
            return cls(weights, bits) if bits else None
        for way in COMPILED_HEAD.ways:
            if len(weights.key) <= _MOST_UNITS[way]:
                return cls(weights, way)
        return None

    def logits(
        self, profile: FloatArray, table: FloatArray, slots: npt.NDArray[np.int64] | None = None
    ) -> FloatArray:
        """Score candidates of a user.

        Args:
            profile: [K, P], K at least 1.
            table: [any, C or more], candidates' rows among others.
            slots: [N] which rows of the table; all of them if left out.

        Returns:
            [N]

        Raises:
            IndexError: a slot is beyond the table.
            ValueError: the arrays do not fit the head.
        """
        logits = np.empty(len(table) if slots is None else len(slots), np.float32)
        self._score(self._head, self.way, np.ascontiguousarray(profile), table, slots, logits)
        return logits
