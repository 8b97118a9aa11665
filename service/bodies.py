"""The shapes of requests and answers, as clients see them in /docs."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

ID_BYTES: Final = 256
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_MS: Final = 946_684_800_000  # 2000-01-01
_LATEST_MS: Final = 253_402_300_799_999  # 9999-12-31
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def identifier_fault(value: str) -> str | None:
    """Say what is wrong with an id, if anything is."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "an id must be valid Unicode"
    if not 1 <= size <= ID_BYTES:
        return f"an id has 1 to {ID_BYTES} bytes, this one has {size}"
    if not value.isprintable() and any(unicodedata.category(c) == "Cc" for c in value):
        return "an id has no control characters"
    return None


def _identifier(value: str) -> str:
    fault = identifier_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


def _milliseconds(value: object) -> int:
    if isinstance(value, str):
        value = _parse_rfc3339(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a timestamp is whole milliseconds since 1970, or an RFC 3339 string")  # noqa: TRY004  pydantic's
    if value < _EARLIEST_MS:
        raise ValueError(f"timestamp {value} is before 2000: milliseconds are expected")
    if value > _LATEST_MS:
        raise ValueError(f"timestamp {value} is after 9999: milliseconds are expected")
    return value


def _parse_rfc3339(text: str) -> int:
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not RFC 3339, e.g. 2024-05-01T12:00:00.250Z")
    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text[:40]!r} is no moment: {exc}") from None


Identifier = Annotated[
    str, AfterValidator(_identifier), Field(json_schema_extra={"minLength": 1, "maxLength": 256})
]
Timestamp = Annotated[
    int,
    BeforeValidator(_milliseconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "description": "milliseconds since 1970"},
                {"type": "string", "format": "date-time"},
            ]
        }
    ),
]
Category = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
Features = list[Annotated[FiniteFloat, Strict()]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class VideoIn(_Body):
    """A video: its category and the features of its cover picture."""

    video_id: Identifier
    category: Category
    features: Features


class EventIn(_Body):
    """A click. A repeated ``event_id`` of the same user is a duplicate."""

    user_id: Identifier
    video_id: Identifier
    timestamp: Timestamp
    event_id: Identifier | None = None


class CandidateIn(_Body):
    """A registered video by its id, or any video with category and features."""

    video_id: Identifier
    category: Category | None = None
    features: Features | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> CandidateIn:
        if (self.category is None) != (self.features is None):
            raise ValueError("category and features are given together or not at all")
        return self


# Items are judged one by one: a bad one does not spoil its neighbours.
AnyVideo = Annotated[Any, WithJsonSchema(VideoIn.model_json_schema())]
AnyEvent = Annotated[Any, WithJsonSchema(EventIn.model_json_schema())]


class VideosIn(_Body):
    """Videos to register."""

    videos: list[AnyVideo]


class EventsIn(_Body):
    """Clicks to append."""

    events: list[AnyEvent]


class ScoreIn(_Body):
    """Whom to rank what for."""

    user_id: Identifier
    candidates: Annotated[list[CandidateIn], Field(min_length=1)]
    top_k: Annotated[int, Strict(), Field(ge=1)] | None = None
    min_history_version: Annotated[int, Strict(), Field(ge=0)] = 0
    timeout_ms: Annotated[int, Strict(), Field(ge=1)] | None = None
    strict: Annotated[bool, Strict()] = False


class FaultOut(BaseModel):
    """Why one video was not stored."""

    index: int
    reason: str


class VideosOut(BaseModel):
    """``accepted`` videos are stored now, ``unchanged`` of them were before."""

    accepted: int
    unchanged: int
    faults: list[FaultOut]


class VerdictOut(BaseModel):
    """accepted, late, too_old, duplicate, deleted, future or invalid.

    A click on an unknown video is kept, too.
    """

    status: str
    reason: str | None = None
    video_known: bool | None = None


class UserOut(BaseModel):
    """Where a history stands after the call."""

    history_version: int
    history_length: int


class EventsOut(BaseModel):
    """A verdict per event, in order, and the users they belong to."""

    results: list[VerdictOut]
    users: dict[str, UserOut]


class ModelOut(BaseModel):
    """The version that answered."""

    name: str
    version: str


class HistoryOut(BaseModel):
    """The history that the answer reflects."""

    length: int
    version: int


class RowOut(BaseModel):
    """A candidate; without a score there is a reason."""

    video_id: str
    index: int
    rank: int | None
    score: float | None
    reason: str | None = None


class DegradedOut(BaseModel):
    """Why an answer does not follow from all acknowledged clicks."""

    level: str
    reason: str


class ScoreOut(BaseModel):
    """Candidates, best first; ``degraded`` where Redis did not answer."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str
    model: ModelOut
    history: HistoryOut
    results: list[RowOut]
    took_ms: float
    degraded: DegradedOut | None = None


class ClickOut(BaseModel):
    """A click of a history."""

    video_id: str
    timestamp: int


class StoredProfileOut(BaseModel):
    """``state``: fresh, stale (computed again at the next score) or missing."""

    model_config = ConfigDict(protected_namespaces=())

    state: str
    model_version: str | None = None
    history_version: int | None = None
    computed_at: int | None = None
    bytes: int | None = None


class BlocksOut(BaseModel):
    """A history as the model cuts it: blocks of clicks, oldest first."""

    version: int
    length: int
    blocks: list[list[ClickOut]]


class UserStateOut(BaseModel):
    """What is kept of a user."""

    user_id: str
    history: BlocksOut
    profile: StoredProfileOut
    refused_until: int | None = None


class DeletedVideoOut(BaseModel):
    """A deleted video, and whether it was registered."""

    video_id: str
    existed: bool


class DeletedOut(BaseModel):
    """A deleted user; clicks up to ``refused_until`` do not come back."""

    user_id: str
    existed: bool
    history_version: int
    refused_until: int


class ModelsOut(BaseModel):
    """Published versions, oldest first, the promoted one and the one that answers."""

    versions: list[str]
    current: str | None
    serving: str | None


class ProblemOut(BaseModel):
    """An error, as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def reasons(error: ValidationError) -> str:
    """Say in one line what is wrong with an item."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        place = ".".join(map(str, fault["loc"]))
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(lines)
