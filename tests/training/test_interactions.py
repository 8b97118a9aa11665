"""Click logs: what is read, and what is refused with file, line and reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import Click, visible_history
from training.errors import DataError
from training.features import checked_halves
from training.interactions import (
    ClickHistories,
    Impressions,
    load_click_log,
    load_features,
    load_impressions,
)

HEADER = "user_id,item_id,cate_id,is_click,timestamp\n"


def _csv(directory: Path, text: str) -> Path:
    path = directory / "train_data.csv"
    path.write_text(text)
    return path


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Order and further columns do not matter, nor do Windows line ends or a missing last one."""
    text = "timestamp,is_click,extra,cate_id,item_id,user_id\r\n50,1,9,3,2,7\r\n60,0,9,4,1,8"

    log = load_impressions(_csv(tmp_path, text), num_items=3)

    assert log.user_ids.tolist() == [7, 8]
    assert log.item_ids.tolist() == [2, 1]
    assert log.categories.tolist() == [3, 4]
    assert log.labels.tolist() == [1.0, 0.0]
    assert log.timestamps_ms.tolist() == [50, 60]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("user_id,item_id,cate_id,timestamp\n1,1,1,1\n", r"line 1: missing column is_click"),
        (HEADER, "line 2: the file holds no impression"),
        (HEADER + "1,1,1,1,5\n1,1,1,2,5\n", r"line 3: is_click is 2, must be 0 or 1"),
        (HEADER + "1,9,1,1,5\n", r"line 2: item_id is 9, the feature file has 3 rows"),
        (HEADER + "1,-1,1,1,5\n", r"line 2: item_id is -1, must be 0 or more"),
        (HEADER + "1,1,1,1,5\n1,1,1,0,noon\n", r"line 3: timestamp is 'noon', not an integer"),
        (HEADER + "1,1,1,1,5.5\n", r"line 2: timestamp is '5.5', not an integer"),
        (HEADER + "1,1,1,1\n", r"line 2: 4 fields, the header has 5"),
        (HEADER + "1,1,1,1,5\n\n1,1,1,1,5\n", r"line 3: 1 fields, the header has 5"),
        (HEADER + "1,1,-4,1,5\n", r"line 2: cate_id is -4, must be 0 or more"),
    ],
)
def test_a_fault_is_named_by_file_line_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    """The message says where to look and what is wrong."""
    with pytest.raises(DataError, match=rf"train_data\.csv, {reason}"):
        load_impressions(_csv(tmp_path, text), num_items=3)


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    """A file of no bytes is refused."""
    with pytest.raises(DataError, match="line 1: missing column user_id"):
        load_impressions(_csv(tmp_path, ""), num_items=3)


def test_features_must_be_numbers(tmp_path: Path) -> None:
    """A NaN, and what float16 cannot hold, is named by its row; another shape by what it is."""
    path = tmp_path / "features.npy"
    features = np.ones((4, 3), np.float32)
    for value, reason in ((np.nan, "a feature is NaN"), (-7e4, "a feature is -70000, float16")):
        features[2, 1] = value
        np.save(path, features)
        with pytest.raises(DataError, match=rf"features\.npy, row 2: {reason}"):
            list(checked_halves(path, load_features(path)))

    np.save(path, np.ones(4, np.float32))
    with pytest.raises(DataError, match=r"shape \(4,\)"):
        load_features(path)


def test_a_whole_log_is_two_item_spaces(tmp_path: Path) -> None:
    """Sizes come from the data; the test half is optional; widths must agree."""
    np.save(tmp_path / "train_cover_image_feature.npy", np.ones((2, 3), np.float32))
    _csv(tmp_path, HEADER + "1,1,6,1,5\n")
    log = load_click_log(tmp_path)
    assert (log.feature_dim, log.num_categories, log.test) == (3, 7, None)

    np.save(tmp_path / "test_cover_image_feature.npy", np.ones((9, 4), np.float32))
    (tmp_path / "test_data.csv").write_text(HEADER + "1,8,11,1,5\n")
    with pytest.raises(DataError, match="training features are 3 wide, test features 4"):
        load_click_log(tmp_path)

    np.save(tmp_path / "test_cover_image_feature.npy", np.ones((9, 3), np.float32))
    log = load_click_log(tmp_path)
    # Category 11 was never learnt: it is unknown, as it is to a service.
    assert log.num_categories == 7
    assert log.test is not None
    assert log.test.item_ids.tolist() == [8]


clicks = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 120), st.booleans(), st.integers(0, 12)),
    max_size=60,
)


@given(clicks, st.integers(0, 13), st.integers(0, 5), st.integers(1, 6))
def test_histories_are_the_visible_ones(
    rows: list[tuple[int, int, bool, int]], before: int, user: int, length: int
) -> None:
    """The vectorised histories are the treaty's visible_history, ties and duplicates included."""
    columns = np.array([(u, i, int(c), t) for u, i, c, t in rows], np.int64).reshape(-1, 4)
    log = Impressions(
        columns[:, 0],
        columns[:, 1],
        np.zeros(len(columns), np.int64),
        columns[:, 2].astype(np.float32),
        columns[:, 3],
    )
    expected = visible_history(
        [Click(t, str(i)) for u, i, c, t in rows if c and u == user],
        before_ms=before,
        length=length,
    )

    histories = ClickHistories.from_impressions(log)
    starts, ends = histories.bounds(np.array([user]), np.array([before]))
    first = max(int(starts[0]), int(ends[0]) - length)
    seen = [
        Click(int(histories.timestamps_ms[p]), str(histories.item_ids[p]))
        for p in range(first, int(ends[0]))
    ]

    assert seen == expected
