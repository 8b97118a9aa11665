"""The file of ``dump`` and ``restore``: a stream of records, each with a checksum, and a trailer.

The line ``THACIL-DUMP 1``, then records of a header (kind, length of the payload, its CRC-32) and the
payload. The last record holds the counts and the SHA-256 of all bytes before it: a file that
was cut short or altered is refused.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from service.state.transfer import UserFacts, VideoFacts

_MAGIC: Final = b"THACIL-DUMP 1\n"
_RECORD: Final = struct.Struct("<BII")
_LIFE: Final = struct.Struct("<qH")
_LENGTH: Final = struct.Struct("<I")
_TRAILER: Final = struct.Struct("<QQ32s")
_END, _USER, _VIDEO = range(3)


class DumpError(Exception):
    """A file that is no whole dump."""


class DumpWriter:
    """Writes a dump to a stream; :meth:`finish` makes it whole."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.users = self.videos = 0
        self._write(_MAGIC)

    def user(self, user: UserFacts) -> None:
        """Write a user."""
        parts = [_id(user.user_id, user.life_ms), _part(user.meta)]
        self._record(_USER, b"".join([*parts, *map(_part, user.entries)]))
        self.users += 1

    def video(self, video: VideoFacts) -> None:
        """Write a video."""
        self._record(_VIDEO, _id(video.video_id, video.life_ms) + video.value)
        self.videos += 1

    def finish(self) -> None:
        """Write the trailer."""
        trailer = _TRAILER.pack(self.users, self.videos, self._digest.digest())
        self._record(_END, trailer)
        self._stream.flush()

    def _record(self, kind: int, payload: bytes) -> None:
        self._write(_RECORD.pack(kind, len(payload), zlib.crc32(payload)))
        self._write(payload)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._stream.write(data)


def read_dump(stream: BinaryIO) -> Iterator[UserFacts | VideoFacts]:
    """Read a dump record by record.

    Raises:
        DumpError: it is none, a checksum is wrong, or the end is missing; the records before
            were whole.
    """
    digest = hashlib.sha256()
    users = videos = 0
    if _exactly(stream, len(_MAGIC), "the beginning") != _MAGIC:
        raise DumpError("this is no dump: it does not begin with THACIL-DUMP 1")
    digest.update(_MAGIC)
    while True:
        what = f"record {users + videos + 1}"
        header = _exactly(stream, _RECORD.size, what)
        kind, length, checksum = _RECORD.unpack(header)
        payload = _exactly(stream, length, what)
        if zlib.crc32(payload) != checksum:
            raise DumpError(f"{what} of the dump is damaged: its checksum is wrong")
        if kind == _END:
            _check_trailer(payload, users, videos, digest.digest())
            return
        digest.update(header)
        digest.update(payload)
        if kind == _USER:
            users += 1
            yield _user(payload)
        elif kind == _VIDEO:
            videos += 1
            yield _video(payload)
        else:
            raise DumpError(
                f"{what} of the dump is of kind {kind}, which this version does not know"
            )


def _check_trailer(payload: bytes, users: int, videos: int, digest: bytes) -> None:
    if len(payload) != _TRAILER.size or _TRAILER.unpack(payload) != (users, videos, digest):
        raise DumpError("the dump is damaged: its records are not those that were written")


def _exactly(stream: BinaryIO, size: int, what: str) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise DumpError(f"the dump ends within {what}: it was cut short")
        data += more
    return data


def _id(identifier: str, life_ms: int) -> bytes:
    encoded = identifier.encode()
    return _LIFE.pack(life_ms, len(encoded)) + encoded


def _part(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _split(payload: bytes) -> tuple[str, int, bytes]:
    life_ms, length = _LIFE.unpack_from(payload)
    end = _LIFE.size + length
    return payload[_LIFE.size : end].decode(), life_ms, payload[end:]


def _user(payload: bytes) -> UserFacts:
    user_id, life_ms, rest = _split(payload)
    parts = []
    while rest:
        (length,) = _LENGTH.unpack_from(rest)
        parts.append(rest[_LENGTH.size : _LENGTH.size + length])
        rest = rest[_LENGTH.size + length :]
    return UserFacts(user_id, parts[0], parts[1:], life_ms)


def _video(payload: bytes) -> VideoFacts:
    video_id, life_ms, value = _split(payload)
    return VideoFacts(video_id, value, life_ms)
