"""How facts are packed into bytes. The scripts know the same layout.

Meta of a user, 34 bytes, big-endian: ``M1``, history version (8), time in ms up to which clicks
are refused (6), second in which the expiry was last moved on (4), second in which that of the
clicked videos was (4), history length (2), next slot of the ring (2), time of the newest click
in ms (6); then the ring of event marks, 6 bytes each. An entry of a history: time in ms (6),
video id.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from model_store import Click, FloatArray

META_BYTES: Final = 34
FEATURE_LIMIT: Final = float(np.finfo(np.float16).max)
"""Largest magnitude that a stored feature may have."""

_META: Final = struct.Struct(">2sQHIIIHHHI")
_MAGIC: Final = b"M1"
_VIDEO: Final = struct.Struct("<Bq")
_VIDEO_FORMAT: Final = 1
_MARK_BYTES: Final = 6


@dataclass(frozen=True, slots=True)
class Position:
    """Where a user's history stands: version 0 and length 0 when there is none."""

    version: int
    length: int


@dataclass(frozen=True, slots=True)
class Meta:
    """What is kept of a user beside the clicks.

    Attributes:
        position: where the history stands.
        refused_until_ms: clicks up to this time are refused; 0 unless the user was deleted.
    """

    position: Position
    refused_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Video:
    """A registered video: category and features [F], as far as float16 keeps them."""

    category: int
    features: FloatArray


NO_META: Final = Meta(Position(0, 0))


def unpack_meta(packed: bytes | None) -> Meta:
    """Read the header of a user's meta; what is missing or of another format is nobody's."""
    if not packed or len(packed) < META_BYTES or not packed.startswith(_MAGIC):
        return NO_META
    _, version, high, low, _, _, length, *_ = _META.unpack_from(packed)
    return Meta(Position(version, length), high << 32 | low)


def pack_version(version: int) -> bytes:
    """Write a history version as meta holds it."""
    return version.to_bytes(8, "big")


def pack_click(click: Click) -> bytes:
    """Write an entry of a history; entries order by their bytes as clicks do."""
    return click.clicked_at_ms.to_bytes(6, "big") + click.video_id.encode()


def unpack_click(entry: bytes) -> Click:
    """Read an entry of a history."""
    return Click(int.from_bytes(entry[:6], "big"), entry[6:].decode())


def mark(identifier: str) -> bytes:
    """Return 6 bytes that stand for an id; empty for an empty one.

    Two of the 160 event ids that a user is remembered by share a mark once in 10^12 events.
    """
    if not identifier:
        return b""
    return blake2b(identifier.encode(), digest_size=_MARK_BYTES).digest()


def pack_video(video: Video) -> bytes:
    """Write a video, features as float16."""
    header = _VIDEO.pack(_VIDEO_FORMAT, video.category)
    return header + video.features.astype("<f2").tobytes()


def unpack_video(value: bytes | None) -> Video | None:
    """Read a video; ``None`` for what is missing or of a format that was never written."""
    if value is None or len(value) < _VIDEO.size or value[0] != _VIDEO_FORMAT:
        return None
    _, category = _VIDEO.unpack_from(value)
    return Video(category, np.frombuffer(value, "<f2", offset=_VIDEO.size).astype(np.float32))
