"""Which errors of the parts are answers, and which problem each of them is."""

from __future__ import annotations

import logging
from typing import Final

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.admission import DeadlineError, OverloadedError
from service.live_model import NoModelError
from service.problems import ProblemError
from service.state import StateDownError, StateFullError

_STATUS: Final[dict[type[Exception], int]] = {
    OverloadedError: 429,
    NoModelError: 503,
    DeadlineError: 504,
}
TOO_MANY: Final = "too many candidates are being ranked already: try again"
"""Said of a request that is not even read: to refuse must cost little when there is too much."""
REFUSALS: Final[tuple[type[Exception], ...]] = (
    ProblemError,
    RequestValidationError,
    HTTPException,
    StateDownError,
    *_STATUS,
)
"""The errors that are answers."""

_log = logging.getLogger(__name__)


def problem_of(error: Exception) -> ProblemError:
    """Turn an error into the problem that the caller gets."""
    match error:
        case ProblemError():
            return error
        case RequestValidationError():
            return _validation_problem(error)
        case HTTPException():
            return ProblemError(error.status_code, str(error.detail))
        case StateDownError():
            return _state_problem(error)
        case _:
            return ProblemError(_STATUS.get(type(error), 503), str(error))


def _state_problem(error: StateDownError) -> ProblemError:
    _log.error("%s", error)
    if isinstance(error, StateFullError):
        detail = "Redis is full and takes nothing new, what was acknowledged is safe: try later"
    else:
        detail = "Redis does not answer, what was acknowledged is safe: try again"
    return ProblemError(503, detail)


def _validation_problem(error: RequestValidationError) -> ProblemError:
    found = error.errors()
    if any(fault["type"] == "json_invalid" for fault in found):
        return ProblemError(400, "the body is not JSON")
    faults = [
        {
            "pointer": "/" + "/".join(map(str, f["loc"][1:])),
            "detail": f["msg"].removeprefix("Value error, "),
        }
        for f in found[:20]
    ]
    return ProblemError(422, f"{len(found)} things are wrong with the request", errors=faults)
