"""The body of ``POST /events``: one JSON object, or a line of JSON per event."""

from __future__ import annotations

import io
import json
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service import bodies
from service.answers import check_limit
from service.problems import ProblemError

_LINES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")

EVENTS_SCHEMA: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {"schema": bodies.EventsIn.model_json_schema()},
        _LINES[0]: {"schema": {"type": "string", "description": "an event per line"}},
    },
}


def parse_events(content_type: str, raw: bytes, *, limit: int) -> list[object]:
    """Read the events of a body; each is judged later.

    Raises:
        ProblemError: 400 not JSON, 413 more than ``limit``, 415 another content type.
        RequestValidationError: JSON, but not of the form.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _LINES:
        return _lines(raw, limit)
    if kind == "application/json" or kind.endswith("+json"):
        events = _object(raw)
        check_limit("events", len(events), limit)
        return events
    raise ProblemError(
        415, f"content type {kind!r} is not taken: application/json or {_LINES[0]} are"
    )


def _object(raw: bytes) -> list[object]:
    try:
        return bodies.EventsIn.model_validate(json.loads(raw)).events
    except ValidationError as exc:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in exc.errors()]
        raise RequestValidationError(faults) from None
    except ValueError:
        raise ProblemError(400, "the body is not JSON") from None
    except RecursionError:
        raise ProblemError(400, "the body is nested too deeply to be a list of events") from None


def _lines(raw: bytes, limit: int) -> list[object]:
    events: list[object] = []
    for number, line in enumerate(io.BytesIO(raw), start=1):
        if not line.strip():
            continue
        if len(events) == limit:
            # What comes behind is not even read: there may be millions.
            raise ProblemError(413, f"more than {limit} events in one call: split the call")
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError) as exc:
            # Who breaks one line may have broken others: nothing is taken.
            raise ProblemError(
                400, f"line {number} is not JSON ({exc}): nothing of this call was taken"
            ) from None
    return events
