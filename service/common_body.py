"""The common form of a ranking's body, read several times faster than pydantic reads it.

It takes registered candidates only, and takes a body only where it is sure: whatever it refuses
or does not know is left to pydantic, which judges it and names the fault. What it takes, pydantic
takes too, and makes the same of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from service.bodies import ID_BYTES

_Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_BYTES)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class CommonBody(msgspec.Struct, forbid_unknown_fields=True):
    """What every form has; see ``ScoreRequest``."""

    user_id: _Identifier
    top_k: _Positive | None = None
    min_history_version: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout_ms: _Positive | None = None
    strict: bool = False


class _Candidate(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    video_id: _Identifier


class _Json(CommonBody, kw_only=True):
    candidates: Annotated[list[_Candidate], msgspec.Meta(min_length=1)]


class _Packed(CommonBody, kw_only=True):
    video_ids: Annotated[list[_Identifier], msgspec.Meta(min_length=1)]


_JSON: Final = msgspec.json.Decoder(_Json)
_PACKED: Final = msgspec.msgpack.Decoder(_Packed)


def read_json(raw: bytes) -> tuple[CommonBody, list[str]] | None:
    """Read a body in JSON and its candidates' ids; ``None`` where pydantic is to judge."""
    try:
        body = _JSON.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    video_ids = [candidate.video_id for candidate in body.candidates]
    return (body, video_ids) if _plain(raw) or _surely_ids(body.user_id, video_ids) else None


def read_packed(raw: bytes) -> tuple[CommonBody, list[str]] | None:
    """Read a body in MessagePack and its candidates' ids; ``None`` where pydantic is to judge."""
    try:
        body = _PACKED.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return (body, body.video_ids) if _surely_ids(body.user_id, body.video_ids) else None


def _plain(raw: bytes) -> bool:
    # In ASCII without an escape JSON has one control character in a string at most, DEL: three
    # quick looks at the whole.
    return raw.isascii() and b"\\" not in raw and b"\x7f" not in raw


def _surely_ids(user_id: str, video_ids: Sequence[str]) -> bool:
    # In one piece: no control characters, and as many bytes as characters, which were counted.
    text = "".join([user_id, *video_ids])
    return text.isascii() and text.isprintable()
