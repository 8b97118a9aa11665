"""A session on buffers that stay: inputs are copied into them, outputs out of them.

On a CUDA device a plain run allocates device memory for each input and output and copies them
through pageable memory of its own choosing; bound to buffers it allocates nothing, and every run
of a shape finds them at the same addresses.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from model_store.history import FloatArray

SHAPES: Final = 64
"""Shapes whose buffers are kept; those used least recently go first."""


@dataclass(frozen=True, slots=True)
class _Buffers:
    binding: Any
    inputs: Mapping[str, Any]
    output: Any


class BoundSession:
    """Runs a session of float32 inputs and one output. Safe to call from several threads.

    One run goes at a time: the buffers are one run's.

    Args:
        session: what is run.
        device_type: where its buffers are, cpu or cuda.
        shapes: how many shapes' buffers are kept.
    """

    def __init__(
        self, session: ort.InferenceSession, device_type: str, *, shapes: int = SHAPES
    ) -> None:
        self._session = session
        self._device_type = device_type
        self._shapes = shapes
        self._output = session.get_outputs()[0].name
        self._buffers: OrderedDict[tuple[tuple[int, ...], ...], _Buffers] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buffers)

    def run(self, inputs: Mapping[str, FloatArray], output_shape: tuple[int, ...]) -> FloatArray:
        """Run once and return a copy of the output."""
        key = (*(array.shape for array in inputs.values()), output_shape)
        with self._lock:
            buffers = self._buffers.pop(key, None) or self._made(inputs, output_shape)
            for name, array in inputs.items():
                buffers.inputs[name].update_inplace(np.ascontiguousarray(array, np.float32))
            self._session.run_with_iobinding(buffers.binding)
            found: FloatArray = np.array(buffers.output.numpy())
            # Only now: buffers of a run that failed are not used again.
            self._buffers[key] = buffers
            if len(self._buffers) > self._shapes:
                self._buffers.popitem(last=False)
        return found

    def _made(self, inputs: Mapping[str, FloatArray], output_shape: tuple[int, ...]) -> _Buffers:
        binding = self._session.io_binding()
        bound = {name: self._empty(array.shape) for name, array in inputs.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        output = self._empty(output_shape)
        binding.bind_ortvalue_output(self._output, output)
        return _Buffers(binding, bound, output)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device_type, 0)
