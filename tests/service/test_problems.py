"""Problems as bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.problems import ProblemError, RepeatedProblem, write_problem

texts = st.text() | st.sampled_from(["null", '"request_id":null', ',"request_id":null}', "\\"])


@given(texts, texts, st.dictionaries(texts, st.none() | texts))
def test_a_problem_written_once_is_the_one_that_is_written_every_time(
    request_id: str, detail: str, members: dict[str, str | None]
) -> None:
    """Whatever stands in it beside the request's id."""
    members.pop("request_id", None)
    problem = ProblemError(429, detail, members=members)
    repeated, written = RepeatedProblem(problem), write_problem(problem, request_id)

    assert repeated.body(request_id) == written.body
    assert (b"retry-after", b"1") in repeated.headers
    assert repeated.status == problem.status
