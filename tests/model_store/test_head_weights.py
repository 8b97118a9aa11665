"""A head's numbers travel in its graph's metadata, and are refused where they are not the layout's."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from model_store import GraphInvalidError, HeadWeights

from .conftest import LAYOUT
from .heads import WEIGHTS, head


def written(header: bytes) -> str:
    """An array's text with another header."""
    raw = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    return base64.b64encode(raw).decode()


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % (1 << 60)


def test_numbers_come_back_from_metadata() -> None:
    """As they were; beside whatever else the metadata holds."""
    metadata = WEIGHTS.to_metadata()
    found = HeadWeights.from_metadata({**metadata, "other": "x"}, LAYOUT)

    assert found is not None
    for name in HeadWeights.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(WEIGHTS, name))
    assert found.bias.shape == ()
    assert HeadWeights.from_metadata({"other": "x"}, LAYOUT) is None


def test_numbers_of_a_head_to_come_are_left_alone() -> None:
    """Its graph scores: what a later trainer published is served, though not as fast."""
    later = {**WEIGHTS.to_metadata(), "score_head.format": "2"}

    assert HeadWeights.from_metadata(later, LAYOUT) is None


def test_numbers_lie_in_memory_as_they_must() -> None:
    """However the array lay that was written."""
    turned = replace(WEIGHTS, hidden=np.asfortranarray(WEIGHTS.hidden))
    found = HeadWeights.from_metadata(turned.to_metadata(), LAYOUT)

    assert found is not None
    assert found.hidden.flags.c_contiguous
    np.testing.assert_array_equal(found.hidden, WEIGHTS.hidden)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score_head.key": None}, "key are missing"),
        ({"score_head.key": WEIGHTS.to_metadata()["score_head.bias"]}, r"key is float(16|32) \(\)"),
        ({"score_head.key": base64.b64encode(b"PK\3\4").decode()}, "key cannot be read"),
        ({"score_head.key": written(b"(" * 64)}, "key cannot be read"),
        ({"score_head.key": written(HUGE)}, "key cannot be read"),
        ({"score_head.key": "no base64"}, "key cannot be read"),
        ({"score_head.key": "AAAA"}, "key cannot be read"),
        (head(2, LAYOUT.profile_dim, 3).to_metadata(), "take 5 of a candidate's row"),
        (head(1, LAYOUT.profile_dim + 1, 3).to_metadata(), r"key is float32 \(1, 6\)"),
        (head(1, LAYOUT.profile_dim, 3, scale=np.inf).to_metadata(), "must be finite"),
    ],
)
def test_numbers_that_are_not_the_layouts_are_refused(
    change: dict[str, str | None], said: str
) -> None:
    """A version is whole or does not open."""
    metadata = {**WEIGHTS.to_metadata(), **change}
    given_ = {name: text for name, text in metadata.items() if text is not None}
    with pytest.raises(GraphInvalidError, match=said):
        HeadWeights.from_metadata(given_, LAYOUT)
