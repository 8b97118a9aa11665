"""The fast reader takes what pydantic takes, makes the same of it, and leaves it the rest."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st

from service import score_body
from service.common_body import read_json, read_packed
from service.problems import ProblemError
from service.score_body import parse_compact, parse_score

texts = st.text(max_size=4) | st.sampled_from(
    ["", "a", "\x00", "\x7f", "\x85", "é", "v" * 257, "漢" * 90]
)
numbers = st.integers() | st.floats() | st.booleans() | st.none() | texts
candidates = st.fixed_dictionaries(
    {"video_id": texts | numbers},
    optional={"category": numbers, "features": st.lists(st.floats(), max_size=2), "x": numbers},
)
wishes = dict.fromkeys(("top_k", "min_history_version", "timeout_ms", "strict", "x"), numbers)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "user_id": texts | numbers,
        "candidates": st.lists(candidates, max_size=3) | numbers,
        **wishes,
    },
)
usual = st.fixed_dictionaries(
    {
        "user_id": st.text("abc", min_size=1),
        "candidates": st.lists(
            st.fixed_dictionaries({"video_id": st.text("xyz~ ", min_size=1)}), min_size=1
        ),
    },
    optional={
        "top_k": st.integers(-1, 2**70) | st.none(),
        "min_history_version": st.integers(-1, 9),
        "timeout_ms": st.integers(0, 9) | st.none(),
        "strict": st.booleans(),
    },
)


def outcome(parse: Any, raw: bytes) -> Any:
    try:
        return parse(raw)
    except (ProblemError, RequestValidationError) as exc:
        return type(exc), str(exc), getattr(exc, "status", None)


def assert_agreed(raw: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_body, "read_json", lambda _: None)
        judged = outcome(parse_score, raw)
    assert repr(outcome(parse_score, raw)) == repr(judged)


@given(bodies | usual | st.dictionaries(texts, numbers))
def test_both_readers_agree(body: dict[str, Any]) -> None:
    """On values, on faults and on their words, in JSON and in MessagePack."""
    # With escapes, and with everything that may be as it is.
    for text in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
        assert_agreed(text.encode())

    packed = dict(body)
    asked = packed.pop("candidates", None)
    if isinstance(asked, list):
        packed["video_ids"] = [candidate["video_id"] for candidate in asked]
    try:
        raw = msgpack.packb(packed)
    except (OverflowError, UnicodeEncodeError):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_body, "read_packed", lambda _: None)
        judged = outcome(parse_compact, raw)
    assert repr(outcome(parse_compact, raw)) == repr(judged)


ODD = ["\x00", "\t", "\x1f", "\x7f", "\x85", "\\", '"', "é", "漢" * 90, "\ud800", ""]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("written", ["escaped", "where it must be", "as it is"])
def test_both_readers_agree_on_characters(odd: str, written: str) -> None:
    """In a body that has no other fault; a control character as it is makes it no JSON."""
    for user_id, video_id in ((odd, "v"), ("u", odd), ("u", f"v{odd}w")):
        if written == "as it is":
            text = f'{{"user_id":"{user_id}","candidates":[{{"video_id":"{video_id}"}}]}}'
        else:
            body = {"user_id": user_id, "candidates": [{"video_id": "x"}, {"video_id": video_id}]}
            text = json.dumps(body, ensure_ascii=written == "escaped")
        # Half of a pair of surrogates is no UTF-8.
        assert_agreed(text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=40) | usual.map(lambda body: json.dumps(body).encode()[:-1] + b", }"))
def test_what_is_no_json_is_left_to_pydantic(raw: bytes) -> None:
    """And what is no MessagePack."""
    for read, parse in ((read_json, parse_score), (read_packed, parse_compact)):
        if read(raw) is None:
            with pytest.raises((ProblemError, RequestValidationError)):
                parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"user_id":"u","user_id":"w","candidates":[{"video_id":"a","video_id":"b"}]}',
        b' {"candidates" : [ {"video_id":"\\u0061"} ] , "user_id":"u", "top_k":null} ',
    ],
)
def test_the_fast_reader_reads_the_common_form(raw: bytes) -> None:
    """Otherwise the other tests of this file would say nothing."""
    read = read_json(raw)

    assert read is not None
    given_ = score_body._SCORE.validate_json(raw)
    assert (read[0].user_id, read[1]) == (
        given_["user_id"],
        [candidate["video_id"] for candidate in given_["candidates"]],
    )
