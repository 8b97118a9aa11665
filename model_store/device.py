"""Where graphs run: on a CPU, or on a CUDA device with float32 as exact as on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import onnxruntime as ort

from model_store.compiled_head import COMPILED_HEAD
from model_store.errors import DeviceError

Arena = Literal["same_as_requested", "next_power_of_two"]

_CUDA: Final = "CUDAExecutionProvider"
_ARENAS: Final[dict[Arena, str]] = {
    "same_as_requested": "kSameAsRequested",
    "next_power_of_two": "kNextPowerOfTwo",
}
_DRIVER: Final = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device.

    Attributes:
        kind: cpu or cuda.
        memory_mb: of a CUDA device for each session; 0 for no limit.
        arena: how the memory of a CUDA device grows: by what is asked for, or to the next power of
            two, which asks the driver less often and wastes up to half.
        bind: run the score head's graph on buffers that stay; on a CUDA device always.
        head_bits: on a CPU, how wide the compiled head's registers are, one of
            ``COMPILED_HEAD.ways``; 0 for the graph, nothing for the fastest of all.
    """

    kind: Literal["cpu", "cuda"] = "cpu"
    memory_mb: int = 0
    arena: Arena = "same_as_requested"
    bind: bool = False
    head_bits: int | None = None

    def providers(self) -> list[str | tuple[str, dict[str, Any]]]:
        """Return ONNX Runtime's execution providers, in order of preference."""
        if self.kind == "cpu":
            return ["CPUExecutionProvider"]
        options = {
            # The golden answers were made in full float32.
            "use_tf32": "0",
            "arena_extend_strategy": _ARENAS[self.arena],
        }
        if self.memory_mb:
            options["gpu_mem_limit"] = str(self.memory_mb * 2**20)
        return [(_CUDA, options), "CPUExecutionProvider"]

    def check(self, providers: Sequence[str]) -> None:
        """Make sure that a session runs where it should: the library falls back in silence.

        Raises:
            DeviceError: it runs elsewhere.
        """
        if self.kind == "cuda" and _CUDA not in providers:
            raise DeviceError(
                "no CUDA device can be used: install a driver, CUDA 13 and cuDNN 9 (pip install "
                "'onnxruntime-gpu[cuda,cudnn]'), or choose the device cpu"
            )


CPU: Final = Device()
GRAPHS_ONLY: Final = Device(head_bits=0)
"""A CPU on which the score head is a graph like the others."""
EVERY_HEAD: Final = (GRAPHS_ONLY, *(Device(head_bits=bits) for bits in COMPILED_HEAD.ways))
"""For what must hold whatever scores: the graph, or what is compiled for this processor."""


def find_device(
    wanted: Literal["auto", "cpu", "cuda"],
    *,
    memory_mb: int = 0,
    arena: Arena = "same_as_requested",
    graphs_only: bool = False,
) -> Device:
    """Choose a device; ``auto`` takes CUDA where a driver and a build for it are there.

    Args:
        wanted: which.
        memory_mb: see :class:`Device`.
        arena: see :class:`Device`.
        graphs_only: on a CPU, score with the head's graph.

    Raises:
        DeviceError: CUDA is wanted, and this build of ONNX Runtime has none.
    """
    built = _CUDA in ort.get_available_providers()
    if wanted == "cuda" and not built:
        raise DeviceError(
            "this ONNX Runtime is built without CUDA: install onnxruntime-gpu, or choose the "
            "device cpu"
        )
    if wanted == "cpu" or not built or (wanted == "auto" and not _DRIVER.exists()):
        return GRAPHS_ONLY if graphs_only else CPU
    # Finds the libraries that were installed beside it from PyPI.
    ort.preload_dlls()
    return Device("cuda", memory_mb, arena, bind=True)
