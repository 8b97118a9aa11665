"""How the routes answer, and what they refuse alike."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson
from fastapi import Response
from starlette.convertors import PathConvertor, register_url_convertor

from service import bodies
from service.problems import ProblemError

JSON: Final = "application/json"

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": bodies.ProblemOut} for status in (400, 404, 409, 413, 415, 422, 429, 503, 504)
}


class _IdConvertor(PathConvertor):
    """Takes slashes and line breaks: what an id may not hold is said by :mod:`bodies`."""

    regex = r"[\s\S]*"


register_url_convertor("id", _IdConvertor())


class Written(NamedTuple):
    """The body of an answer.

    Attributes:
        body: its bytes.
        media_type: what they are.
    """

    body: bytes
    media_type: str = JSON

    def response(self) -> Response:
        """Return it as the framework wants it."""
        return Response(self.body, media_type=self.media_type)


def json_answer(body: object) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(body), media_type=JSON)


def check_limit(what: str, count: int, limit: int) -> None:
    """Refuse more than ``limit`` things in one call."""
    if count > limit:
        raise ProblemError(413, f"{count} {what} in one call, {limit} are allowed: split the call")
