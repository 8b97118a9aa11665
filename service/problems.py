"""One error form everywhere: RFC 9457 problem details, with a closed set of types."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse

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
        members: further members of the answer.
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


def problem_response(request: Request, problem: ProblemError) -> JSONResponse:
    """Render a problem."""
    body: dict[str, object] = {
        "type": f"urn:ctr:problem:{_TYPES.get(problem.status, 'http')}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": getattr(request.state, "request_id", None),
        **problem.members,
    }
    if problem.errors:
        body["errors"] = problem.errors
    passing = problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    headers = {"Retry-After": "1"} if passing else None
    return JSONResponse(
        body, problem.status, headers=headers, media_type="application/problem+json"
    )
