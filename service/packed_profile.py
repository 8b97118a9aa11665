"""A profile as bytes, with its origin inside.

It answers for exactly one model version and one history version, and as long as none of the
videos behind it has changed. Numbers are rounded to 24 bits (sign, exponent, 15 bits of
fraction and the hidden one): a quarter less memory for every user, and a freshly computed
profile is rounded the same way, so that it answers bit for bit like a stored one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, OpenVersion

_HEADER: Final = struct.Struct("<2sHqqHHI")
_MAGIC: Final = b"P2"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a profile was computed from.

    Attributes:
        model_version: the model.
        history_version: the history.
        read_at_ms: when history and videos were read, by the clock of Redis.
        fingerprints: one per click, [n] uint32; see ``changes``.
        missing: clicked videos that were not registered.
    """

    model_version: str
    history_version: int
    read_at_ms: int
    fingerprints: npt.NDArray[np.uint32]
    missing: Sequence[str] = ()


def rounded(array: FloatArray) -> FloatArray:
    """Round to what a stored profile holds: relative error 2**-17 at most."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        near = ((bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00)).view(np.float32)
    return np.where(np.isfinite(array), near, array)


def pack_profile(array: FloatArray, origin: Origin) -> bytes:
    """Write a rounded profile [K, P]."""
    name = origin.model_version.encode()
    missing = "\n".join(origin.missing).encode()
    header = _HEADER.pack(
        _MAGIC,
        len(name),
        origin.history_version,
        origin.read_at_ms,
        len(origin.fingerprints),
        len(missing),
        array.size,
    )
    numbers = np.ascontiguousarray(array, "<f4").view(np.uint8).reshape(-1, 4)[:, 1:]
    return b"".join(
        [header, name, missing, origin.fingerprints.astype("<u4").tobytes(), numbers.tobytes()]
    )


def read_origin(packed: bytes | None) -> Origin | None:
    """Read where a profile comes from; ``None`` where this is none of ours."""
    if packed is None or len(packed) < _HEADER.size:
        return None
    magic, name, version, read_at_ms, clicks, missing, size = _HEADER.unpack_from(packed)
    if magic != _MAGIC or len(packed) != _HEADER.size + name + missing + 4 * clicks + 3 * size:
        return None
    start = _HEADER.size + name
    ids = packed[start : start + missing].decode()
    return Origin(
        model_version=packed[_HEADER.size : start].decode(),
        history_version=version,
        read_at_ms=read_at_ms,
        fingerprints=np.frombuffer(packed, "<u4", count=clicks, offset=start + missing),
        missing=ids.split("\n") if ids else (),
    )


def read_array(packed: bytes, opened: OpenVersion) -> FloatArray | None:
    """Read the numbers [K, P]; ``None`` where they are not such as the model has."""
    layout = opened.manifest.layout
    size = _HEADER.unpack_from(packed)[-1]
    blocks, rest = divmod(size, layout.profile_dim)
    if rest or not 1 <= blocks <= layout.num_blocks:
        return None
    numbers = np.zeros((size, 4), np.uint8)
    numbers[:, 1:] = np.frombuffer(packed, np.uint8, offset=len(packed) - 3 * size).reshape(-1, 3)
    return numbers.view("<f4").astype(np.float32).reshape(blocks, layout.profile_dim)
