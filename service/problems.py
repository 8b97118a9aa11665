"""One error form everywhere: RFC 9457 problem details, with a closed set of types."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

import orjson
from fastapi import Request, Response

MEDIA_TYPE: Final = "application/problem+json"

_TYPES = {
    400: "malformed",
    404: "not-found",
    405: "method-not-allowed",
    409: "history-behind",
    413: "too-large",
    415: "unsupported-media-type",
    422: "invalid",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
    504: "deadline-passed",
}


class ProblemError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        detail: names the value, the limit and the way out.
        errors: faults by field, where there are several.
        members: further members of the answer, other than ``request_id``.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors
        self.members = dict(members or {})


def problem_response(request: Request, problem: ProblemError) -> Response:
    """Render a problem."""
    written = write_problem(problem, getattr(request.state, "request_id", None))
    return Response(written.body, problem.status, written.headers, media_type=MEDIA_TYPE)


class WrittenProblem(NamedTuple):
    """A problem as bytes, and the headers that go with it beside its media type."""

    body: bytes
    headers: dict[str, str]


def write_problem(problem: ProblemError, request_id: str | None) -> WrittenProblem:
    """Write a problem; when there is too much to do this must cost little."""
    body: dict[str, object] = {
        "type": f"urn:ctr:problem:{_TYPES.get(problem.status, 'http')}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
        **problem.members,
    }
    if problem.errors:
        body["errors"] = problem.errors
    passing = problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return WrittenProblem(orjson.dumps(body), {"retry-after": "1"} if passing else {})


class RepeatedProblem:
    """A problem that is answered over and over: written once, but for the request's id.

    Args:
        problem: what is wrong.

    Attributes:
        status: HTTP status.
        headers: that are always the same.
    """

    def __init__(self, problem: ProblemError) -> None:
        written = write_problem(problem, None)
        self.status = problem.status
        self.headers: list[tuple[bytes, bytes]] = [
            (b"content-type", MEDIA_TYPE.encode()),
            *((name.encode(), value.encode()) for name, value in written.headers.items()),
        ]
        before, name, after = written.body.partition(b'"request_id":')
        self._before, self._after = before + name, after.removeprefix(b"null")

    def body(self, request_id: str) -> bytes:
        """Return the body for one request."""
        return self._before + orjson.dumps(request_id) + self._after
