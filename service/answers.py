"""How the routes answer, and what they refuse alike."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import Response

from service import bodies
from service.problems import ProblemError

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": bodies.ProblemOut} for status in (400, 404, 409, 413, 415, 422, 429, 503, 504)
}


def json_answer(body: object) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(body), media_type="application/json")


def check_limit(what: str, count: int, limit: int) -> None:
    """Refuse more than ``limit`` things in one call."""
    if count > limit:
        raise ProblemError(413, f"{count} {what} in one call, {limit} are allowed: split the call")
