"""The body of ``POST /score``: the common form at once, any other judged by pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired

import msgpack
import numpy as np
from fastapi.exceptions import RequestValidationError
from pydantic import (
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from starlette.types import Scope
from typing_extensions import TypedDict

from service import bodies
from service.bodies import ID_BYTES
from service.common_body import CommonBody, read_json, read_packed
from service.problems import ProblemError
from service.state import Video

_FLOAT32_LIMIT: Final = float(np.finfo(np.float32).max)
_SURELY_SHORT: Final = ID_BYTES // 4

# The same rule as bodies.Identifier, without a call of Python for each.
_Identifier = Annotated[
    str,
    StringConstraints(
        strict=True, min_length=1, max_length=ID_BYTES, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"
    ),
]


class _Candidate(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    video_id: _Identifier
    category: NotRequired[Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)] | None]
    features: NotRequired[list[Annotated[FiniteFloat, Strict()]] | None]


class _Score(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    user_id: _Identifier
    candidates: Annotated[list[_Candidate], Field(min_length=1)]
    top_k: NotRequired[Annotated[int, Strict(), Field(ge=1)] | None]
    min_history_version: NotRequired[Annotated[int, Strict(), Field(ge=0)]]
    timeout_ms: NotRequired[Annotated[int, Strict(), Field(ge=1)] | None]
    strict: NotRequired[Annotated[bool, Strict()]]


class _CompactScore(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    user_id: _Identifier
    video_ids: Annotated[list[_Identifier], Field(min_length=1)]
    top_k: NotRequired[Annotated[int, Strict(), Field(ge=1)] | None]
    min_history_version: NotRequired[Annotated[int, Strict(), Field(ge=0)]]
    timeout_ms: NotRequired[Annotated[int, Strict(), Field(ge=1)] | None]
    strict: NotRequired[Annotated[bool, Strict()]]


_SCORE: Final = TypeAdapter(_Score)
_COMPACT: Final = TypeAdapter(_CompactScore)

MSGPACK: Final = "application/msgpack"
_MSGPACK: Final = (b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack")


SCORE_SCHEMA: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {"schema": bodies.ScoreIn.model_json_schema()},
        MSGPACK: {"schema": _COMPACT.json_schema()},
    },
}


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Whom to rank what for.

    Attributes:
        user_id: the user.
        video_ids: candidates [N].
        inline: content of candidates that brought it along, by place.
        top_k: cuts the ranked rows.
        min_history_version: the answer must reflect a history at least as new.
        timeout_ms: how long the caller waits; ``None`` for the service's default.
        strict: rather no answer than a degraded one.
    """

    user_id: str
    video_ids: list[str]
    inline: dict[int, Video]
    top_k: int | None = None
    min_history_version: int = 0
    timeout_ms: int | None = None
    strict: bool = False


def parse_common(raw: bytes, *, compact: bool) -> ScoreRequest | None:
    """Read a body in the common form, JSON or MessagePack; ``None`` for any other, good or bad."""
    common = read_packed(raw) if compact else read_json(raw)
    return None if common is None else _request(*common)


def parse_score(raw: bytes) -> ScoreRequest:
    """Read and judge a body.

    Raises:
        ProblemError: 400 not JSON, 422 a candidate is inconsistent.
        RequestValidationError: JSON, but not of the form.
    """
    common = parse_common(raw, compact=False)
    if common is not None:
        return common
    try:
        given = _SCORE.validate_json(raw)
    except ValidationError as exc:
        raise _refusal(exc) from None
    candidates = given["candidates"]
    video_ids = [candidate["video_id"] for candidate in candidates]
    _check_bytes(given["user_id"], video_ids)
    inline = {
        place: _inline(candidate, place)
        for place, candidate in enumerate(candidates)
        if len(candidate) > 1
    }
    return ScoreRequest(
        user_id=given["user_id"],
        video_ids=video_ids,
        inline={place: video for place, video in inline.items() if video is not None},
        top_k=given.get("top_k"),
        min_history_version=given.get("min_history_version", 0),
        timeout_ms=given.get("timeout_ms"),
        strict=given.get("strict", False),
    )


def is_compact(scope: Scope) -> bool:
    """Whether a request's body says that it is MessagePack."""
    for name, value in scope.get("headers", ()):
        if name == b"content-type":
            return bool(value.partition(b";")[0].strip().lower() in _MSGPACK)
    return False


def parse_compact(raw: bytes) -> ScoreRequest:
    """Read and judge a body in MessagePack: registered videos only, by their ids.

    Raises:
        ProblemError: 400 not MessagePack, 422 an id is too long.
        RequestValidationError: MessagePack, but not of the form.
    """
    common = parse_common(raw, compact=True)
    if common is not None:
        return common
    try:
        unpacked = msgpack.unpackb(raw, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as exc:
        raise ProblemError(400, f"the body is not MessagePack: {exc}") from None
    try:
        given = _COMPACT.validate_python(unpacked)
    except ValidationError as exc:
        raise _refusal(exc) from None
    video_ids = given["video_ids"]
    _check_bytes(given["user_id"], video_ids, at="/video_ids/{place}")
    return ScoreRequest(
        user_id=given["user_id"],
        video_ids=video_ids,
        inline={},
        top_k=given.get("top_k"),
        min_history_version=given.get("min_history_version", 0),
        timeout_ms=given.get("timeout_ms"),
        strict=given.get("strict", False),
    )


def _request(body: CommonBody, video_ids: list[str]) -> ScoreRequest:
    return ScoreRequest(
        body.user_id,
        video_ids,
        {},
        body.top_k,
        body.min_history_version,
        body.timeout_ms,
        body.strict,
    )


def _refusal(error: ValidationError) -> Exception:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return ProblemError(400, f"the body is not JSON: {faults[0]['msg']}")
    return RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults])


def _check_bytes(
    user_id: str, video_ids: Sequence[str], *, at: str = "/candidates/{place}/video_id"
) -> None:
    # Characters were counted; only long ids can have more bytes than that.
    long = [("/user_id", user_id)] if len(user_id) > _SURELY_SHORT else []
    if len(max(video_ids, key=len)) > _SURELY_SHORT:
        long += [
            (at.format(place=place), video_id)
            for place, video_id in enumerate(video_ids)
            if len(video_id) > _SURELY_SHORT
        ]
    for pointer, identifier in long:
        size = len(identifier.encode())
        if size > ID_BYTES:
            detail = f"an id has 1 to {ID_BYTES} bytes, this one has {size}"
            raise ProblemError(
                422, f"{pointer}: {detail}", errors=[{"pointer": pointer, "detail": detail}]
            )


def _inline(candidate: Any, place: int) -> Video | None:
    category, features = candidate.get("category"), candidate.get("features")
    if (category is None) != (features is None):
        raise _candidate_fault(place, "", "category and features are given together or not at all")
    if category is None:
        return None
    array = np.array(features, np.float64)
    if array.size and np.abs(array).max() > _FLOAT32_LIMIT:
        raise _candidate_fault(place, "/features", "a value is beyond float32")
    return Video(category, array.astype(np.float32))


def _candidate_fault(place: int, field: str, detail: str) -> ProblemError:
    fault = {"pointer": f"/candidates/{place}{field}", "detail": detail}
    return ProblemError(422, f"candidate {place}: {detail}", errors=[fault])
