"""How the routes answer, and what they refuse alike."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import Response

from service import bodies
from service.problems import ProblemError

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": bodies.ProblemOut} for status in (400, 404, 409, 413, 415, 422, 503)
}


def json_answer(body: object) -> Response:
    """Answer with JSON."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def check_limit(what: str, count: int, limit: int) -> None:
    """Refuse more than ``limit`` things in one call."""
    if count > limit:
        raise ProblemError(413, f"{count} {what} in one call, {limit} are allowed: split the call")
