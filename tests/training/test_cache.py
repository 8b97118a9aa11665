"""The columnar cache: made once, made anew when it must be, never half."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import columns, interactions, log_files
from training.cache import ColumnarCache
from training.columns import (
    index_impressions,
    map_columns,
    map_index,
    write_test_columns,
    write_training_columns,
)
from training.errors import DataError
from training.impressions import COLUMN_NAMES, Impressions
from training.interactions import load_click_log, load_impressions
from training.log_files import COLUMNS

HEADER = "user_id,item_id,cate_id,is_click,timestamp\n"


def _write_log(directory: Path, rows: str = "2,0,1,1,9\n1,1,0,0,5\n1,1,0,1,4\n") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "train_data.csv").write_text(HEADER + rows)
    np.save(directory / "train_cover_image_feature.npy", np.eye(2, 3, dtype=np.float32) / 3)
    return directory


def _write_parquet(path: Path, rows: Impressions, **options: int) -> None:
    table = pa.table(dict(zip(COLUMNS, rows.columns(), strict=True)))
    pa.parquet.write_table(table, path, **options)


def _random(rows: int, users: int, *, seed: int = 0) -> Impressions:
    rng = np.random.default_rng(seed)
    return Impressions(
        rng.integers(0, users, rows) * 3,
        rng.integers(0, 50, rows),
        rng.integers(0, 7, rows),
        (rng.random(rows) < 0.4).astype(np.float32),
        rng.integers(0, 40, rows),
    )


def _is_equal(a: Impressions, b: Impressions) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.columns(), b.columns(), strict=True))


def test_a_log_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time no source file is read, and everything is mapped rather than loaded."""
    first = load_click_log(_write_log(tmp_path / "log"))
    monkeypatch.setattr(columns, "read_chunks", None)
    monkeypatch.setattr(interactions, "checked_halves", None)

    again = load_click_log(tmp_path / "log")

    assert _is_equal(first.train, again.train)
    assert again.train.user_ids.tolist() == [1, 1, 2]
    assert again.train.timestamps_ms.tolist() == [4, 5, 9]
    mapped = (*again.train.columns(), again.train_features)
    assert all(isinstance(array.base, np.memmap) for array in mapped)
    assert not any(array.flags.writeable for array in mapped)


def test_float32_features_are_kept_as_float16(tmp_path: Path) -> None:
    """What is mapped is the file rounded to float16."""
    log = load_click_log(_write_log(tmp_path))

    assert log.train_features.dtype == np.float16
    assert np.array_equal(log.train_features, (np.eye(2, 3) / 3).astype(np.float16))


def test_float16_features_are_mapped_where_they_are(tmp_path: Path) -> None:
    """A float16 file is checked once, and not copied."""
    path = _write_log(tmp_path) / "train_cover_image_feature.npy"
    np.save(path, np.ones((2, 3), np.float16))

    log = load_click_log(tmp_path)

    assert isinstance(log.train_features.base, np.memmap)
    assert str(log.train_features.base.filename) == str(path)
    np.save(path, np.full((2, 3), np.nan, np.float16))
    with pytest.raises(DataError, match="row 0: a feature is NaN"):
        load_click_log(tmp_path)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_source_is_read_again(tmp_path: Path, change: str) -> None:
    """Another size or modification time makes the entry anew; the stale one is removed."""
    log = _write_log(tmp_path)
    load_click_log(log)
    if change == "size":
        _write_log(log, "7,1,0,0,5\n8,0,0,1,5\n")
    else:
        _write_log(log, "7,0,1,1,9\n8,1,0,0,5\n9,1,0,1,4\n")
        os.utime(log / "train_data.csv", ns=(1, 1))

    assert load_click_log(log).train.user_ids.tolist()[:2] == [7, 8]
    assert len(list((log / ".columns").glob("train-*"))) == 1


def test_a_read_only_log_is_cached_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written beside it: the user's cache directory takes the columns, or --cache."""
    log = _write_log(tmp_path / "log")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    log.chmod(0o555)
    try:
        load_click_log(log)
        load_click_log(log, cache=tmp_path / "chosen")
    finally:
        log.chmod(0o755)

    assert not (log / ".columns").exists()
    assert list((tmp_path / "home" / "thacil-ctr").glob("*/train-*"))
    assert list((tmp_path / "chosen").glob("*/train-*"))


def test_a_faulty_source_leaves_no_entry(tmp_path: Path) -> None:
    """A fault in the last line is a refusal, also the next time."""
    log = _write_log(tmp_path, "1,1,0,1,4\n1,1,0,1,noon\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 3: timestamp is 'noon'"):
            load_click_log(log)

    assert not list((log / ".columns").glob("train-*"))
    assert not list((log / ".columns").glob(".building-*"))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """An entry that was never finished is neither used nor kept."""
    left = _write_log(tmp_path) / ".columns" / ".building-x"
    left.mkdir(parents=True)
    (left / "user_ids.npy").write_bytes(b"half")

    load_click_log(tmp_path)

    assert not left.exists()


def test_an_unwritable_place_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    """The message names the place and --cache."""
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"cannot be kept in .*file.*--cache DIR"):
        load_click_log(_write_log(tmp_path / "log"), cache=tmp_path / "file")


def test_several_processes_make_an_entry_once(tmp_path: Path) -> None:
    """Whoever comes second waits and takes what the first one made."""
    source, built = tmp_path / "source", []
    source.write_text("x")

    def build(out: Path) -> None:
        built.append(out)
        (out / "whole").write_text("whole")

    def want(_: int) -> str:
        # A lock is held by an open file, so threads exclude each other as processes do.
        return (ColumnarCache(tmp_path).entry("x", [source], build) / "whole").read_text()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(want, range(16))) == {"whole"}
    assert len(built) == 1


tables = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 12), st.integers(0, 3), st.booleans(), st.integers(0, 6)
    ),
    min_size=1,
    max_size=60,
)


@given(tables, st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_columns_of_a_stream_are_those_sorted_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, bool, int]],
    rows_per_sort: int,
    rows_per_chunk: int,
    in_order: bool,
) -> None:
    """Whatever the sizes of pieces and buckets, rows, users, clicks and categories are the same."""
    out = tmp_path_factory.mktemp("out")
    table = sorted(rows, key=lambda row: (row[0], row[4])) if in_order else rows
    users, items, categories, labels, times = np.array(table, np.int64).T
    given_rows = Impressions(users, items, categories, labels.astype(np.float32), times)
    _write_parquet(out / "t.parquet", given_rows)
    sizes = pytest.MonkeyPatch()
    sizes.setattr(log_files, "_ROWS_PER_CHUNK", rows_per_chunk)
    sizes.setattr(columns, "_ROWS_PER_MOVE", rows_per_chunk)
    sizes.setattr(columns, "_USERS_PER_MERGE", 2)
    (out / "made").mkdir()
    try:
        write_training_columns(
            out / "t.parquet", out / "made", num_items=13, rows_per_sort=rows_per_sort
        )
    finally:
        sizes.undo()

    expected, index = index_impressions(given_rows, num_items=13)
    found = map_index(out / "made")
    assert _is_equal(map_columns(out / "made"), expected)
    for name in ("users", "offsets", "categories"):
        assert np.array_equal(getattr(found, name), getattr(index, name)), name
    for name in ("users", "offsets", "item_ids", "timestamps_ms"):
        histories = found.histories, index.histories
        assert np.array_equal(*(getattr(one, name) for one in histories)), name


@pytest.mark.parametrize("layout", ["file", "directory", "plain directory"])
def test_parquet_is_read_as_csv_is(tmp_path: Path, layout: str) -> None:
    """One file or a directory of files, small integers and timestamps: the same columns."""
    rows = _random(1000, 30)
    as_csv, as_parquet = tmp_path / "csv", tmp_path / "parquet"
    for log in (as_csv, as_parquet):
        log.mkdir()
        np.save(log / "train_cover_image_feature.npy", np.ones((50, 2), np.float16))
        np.save(log / "test_cover_image_feature.npy", np.ones((50, 2), np.float16))
    lines = [",".join(str(int(v)) for v in row) for row in zip(*rows.columns(), strict=True)]
    for name in ("train", "test"):
        (as_csv / f"{name}_data.csv").write_text(HEADER + "\n".join(lines))
        table = pa.table(
            {
                "timestamp": pa.array(rows.timestamps_ms, pa.timestamp("ms", "UTC")),
                "user_id": pa.array(rows.user_ids, pa.int32()),
                "item_id": pa.array(rows.item_ids, pa.uint16()),
                "cate_id": pa.array(rows.categories, pa.int8()),
                "is_click": pa.array(rows.labels == 1, pa.bool_()),
                "note": pa.array(["x"] * len(rows)),
            }
        )
        place = as_parquet / (f"{name}_data" + ("" if layout.startswith("plain") else ".parquet"))
        if layout == "file":
            pa.parquet.write_table(table, place, row_group_size=300)
        else:
            place.mkdir()
            for part, begin in enumerate((0, 400, 800)):
                pa.parquet.write_table(table.slice(begin, 400), place / f"{part}.parquet")

    expected, found = load_click_log(as_csv), load_click_log(as_parquet)

    assert expected.test is not None
    assert found.test is not None
    assert _is_equal(found.train, expected.train)
    assert _is_equal(found.test, expected.test)
    assert _is_equal(found.test, rows)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("user_id", pa.array([1, None]), r"row 2: user_id is empty"),
        ("is_click", pa.array([1, 2]), r"row 2: is_click is 2, must be 0 or 1"),
        ("timestamp", pa.array([1.5, 2.0]), r"from row 1 on: timestamp holds double"),
        ("cate_id", pa.array(["a", "b"]), r"from row 1 on: cate_id holds string"),
        ("cate_id", None, r"missing column cate_id"),
    ],
)
def test_a_fault_in_parquet_is_named(
    tmp_path: Path, column: str, values: pa.Array | None, reason: str
) -> None:
    """File, row and reason, as with CSV."""
    fields = {name: pa.array([1, 0]) for name in COLUMNS} | {column: values}
    table = pa.table({name: values for name, values in fields.items() if values is not None})
    pa.parquet.write_table(table, tmp_path / "t.parquet")

    with pytest.raises(DataError, match=rf"t\.parquet.*{reason}"):
        load_impressions(tmp_path / "t.parquet", num_items=2)


def test_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    """No file, a directory without Parquet, bytes that are none, and two candidates for one."""
    np.save(tmp_path / "train_cover_image_feature.npy", np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match=r"train_data\.csv cannot be read: No such file"):
        load_click_log(tmp_path)
    (tmp_path / "train_data").mkdir()
    with pytest.raises(DataError, match=r"without a \.parquet file"):
        load_click_log(tmp_path)
    (tmp_path / "train_data" / "a.parquet").write_text("none")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        load_click_log(tmp_path)
    (tmp_path / "train_data.csv").write_text(HEADER)
    with pytest.raises(DataError, match=r"holds train_data\.csv and train_data"):
        load_click_log(tmp_path)


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Reading, sorting and indexing a table of 79 MB of columns takes less than a third of that."""
    rows = 2_200_000
    _write_parquet(tmp_path / "t.parquet", _random(rows, 5000), row_group_size=1 << 16)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    sizes = pytest.MonkeyPatch()
    for module, name in ((log_files, "_ROWS_PER_CHUNK"), (columns, "_ROWS_PER_MOVE")):
        sizes.setattr(module, name, 1 << 15)
    sizes.setattr(columns, "_USERS_PER_MERGE", 1 << 14)
    tracemalloc.start()
    try:
        write_training_columns(
            tmp_path / "t.parquet", tmp_path / "train", num_items=50, rows_per_sort=1 << 16
        )
        write_test_columns(tmp_path / "t.parquet", tmp_path / "test", num_items=50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        sizes.undo()

    columns_bytes = sum(
        (tmp_path / "train" / f"{name}.npy").stat().st_size for name in COLUMN_NAMES
    )
    assert columns_bytes > 79e6
    assert peak + pa.default_memory_pool().max_memory() < 26e6
