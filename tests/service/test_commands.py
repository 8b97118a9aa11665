"""load-videos, dump and restore, as an operator types them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_store import Click, ModelStore
from service.embedded_redis import embedded_redis
from service.loader import Bookmark
from service.state import NewClick, State
from service.video_files import count_rows, read_chunks

from .conftest import ROOT, wait_for


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    with embedded_redis(tmp_path / "target") as url:
        yield url


def run(*words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "service", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, input=stdin, check=False)


def columns(count: int, width: int = 3) -> dict[str, np.ndarray]:
    return {
        "video_id": np.array([f"film-{i}" for i in range(count)]),
        "category": np.arange(count),
        "features": (np.arange(count * width) % 60_000).reshape(count, width).astype(np.float16)
        / 4096,
    }


def saved(kind: str, directory: Path, count: int) -> Path:
    arrays = columns(count)
    if kind in ("npz", "compressed"):
        path = directory / "videos.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(path, **arrays)
        return path
    if kind == "directory":
        path = directory / "videos"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return path
    arrow = pytest.importorskip("pyarrow")
    features = arrow.FixedSizeListArray.from_arrays(arrays["features"].reshape(-1), 3)
    table = arrow.table({**arrays, "features": features})
    path = directory / f"videos.{kind}"
    if kind == "parquet":
        table = table.set_column(2, "features", features.cast(arrow.list_(arrow.float32(), 3)))
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=700)
    else:
        pytest.importorskip("pyarrow.feather").write_feather(
            table, path, compression="uncompressed"
        )
    return path


KINDS = ["npz", "compressed", "directory", "feather", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_holds_the_same_videos(kind: str, tmp_path: Path) -> None:
    """Whatever the form, the size of the chunks and where reading starts."""
    path, arrays = saved(kind, tmp_path, 2500), columns(2500)
    assert count_rows(path) == 2500
    for start, size in ((0, 1000), (1999, 300), (2500, 10)):
        chunks = list(read_chunks(path, start=start, size=size))
        ids = [video_id for chunk in chunks for video_id in chunk.video_ids]
        assert ids == arrays["video_id"][start:].tolist()
        if chunks:
            features = np.concatenate([chunk.features for chunk in chunks])
            np.testing.assert_array_equal(features, arrays["features"][start:])


def test_a_file_is_loaded_and_goes_on_where_it_stopped(tmp_path: Path, target: str) -> None:
    """Loaded in full; from a bookmark only the rest; a changed file from its beginning."""
    path = saved("npz", tmp_path, 5000)
    first = run("load-videos", str(path), "--redis-url", target)
    assert first.returncode == 0, first.stderr
    assert b"5,000 videos" in first.stderr
    assert b"5,000 new, 0 changed, 0 refused" in first.stderr
    bookmark = Bookmark(path, target)
    assert bookmark.read() == 0
    bookmark.write(4096)
    rest = run("load-videos", str(path), "--redis-url", target)
    assert b"904 videos" in rest.stderr
    bookmark.write(4096)
    time.sleep(0.01)
    path = saved("npz", tmp_path, 5000)
    assert Bookmark(path, target).read() == 0
    with_width = run("load-videos", str(path), "--redis-url", "redis://127.0.0.1:1", "--bogus")
    assert with_width.returncode == 2


def test_a_load_that_was_killed_goes_on(tmp_path: Path, target: str) -> None:
    """Killed in the middle, the same command loads the rest; everything is there."""
    count = 100_000
    path = saved("npz", tmp_path, count)
    bookmark = Bookmark(path, target)
    command = [sys.executable, "-m", "service", "load-videos", str(path), "--redis-url", target]
    loading = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(bookmark.path.exists)
    loading.kill()
    loading.wait()
    done = bookmark.read()
    rest = run(*command[3:])

    assert 0 < done < count
    assert f"{count - done:,} videos in".encode() in rest.stderr

    async def missing() -> int:
        state = State(target)
        ids = columns(count)["video_id"].tolist()
        found = [await state.registered(ids[at : at + 5000]) for at in range(0, count, 5000)]
        await state.close()
        return sum(part.count(False) for part in found)

    assert asyncio.run(missing()) == 0


def test_what_is_in_one_redis_is_loaded_into_another_all_the_same(
    tmp_path: Path, target: str
) -> None:
    """How far a file got counts for the Redis that it went to, whatever the password."""
    path = saved("npz", tmp_path, 3000)
    Bookmark(path, "redis://:secret@elsewhere:6379/0").write(2048)
    assert Bookmark(path, "redis://:other@elsewhere:6379/0").read() == 2048
    assert "secret" not in Bookmark(path, target).path.read_text()
    loaded = run("load-videos", str(path), "--redis-url", target)

    assert b"3,000 videos" in loaded.stderr
    assert b"3,000 new" in loaded.stderr


def test_a_bookmark_that_cannot_be_written_is_told(tmp_path: Path, target: str) -> None:
    """The file is loaded; only that it could not be resumed is said, once."""
    path = saved("npz", tmp_path, 5000)
    # Not even the superuser writes a file where a directory is.
    Bookmark(path, target).path.with_suffix(".tmp").mkdir()
    loaded = run("load-videos", str(path), "--redis-url", target)

    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stderr.count(b"it would begin again") == 1
    assert b"5,000 new" in loaded.stderr


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([1, None, 3], b"or one is null"),
        ([1.0, 2.5, 3.0], b"categories are double"),
        (np.array([1, 2, 2**64 - 1], np.uint64), b"18446744073709551615 is beyond int64"),
    ],
)
def test_a_category_that_is_no_integer_is_refused(
    tmp_path: Path, target: str, categories: object, words: bytes
) -> None:
    """It is not rounded, wrapped or made up, and nothing is stored."""
    arrow = pytest.importorskip("pyarrow")
    numbers = columns(3)
    features = arrow.FixedSizeListArray.from_arrays(numbers["features"].reshape(-1), 3)
    table = {"video_id": numbers["video_id"], "category": categories, "features": features}
    path = tmp_path / "videos.feather"
    pytest.importorskip("pyarrow.feather").write_feather(
        arrow.table(table), path, compression="uncompressed"
    )
    refused = run("load-videos", str(path), "--redis-url", target)

    assert refused.returncode == 1
    assert words in refused.stderr


def test_what_does_not_fit_is_told_and_refused(
    tmp_path: Path, target: str, store: ModelStore
) -> None:
    """Faulty rows are named and left out; a file of another width than the model's, too."""
    arrays = columns(10)
    arrays["features"][4, 1] = np.inf
    np.savez(tmp_path / "odd.npz", **arrays)
    odd = run("load-videos", str(tmp_path / "odd.npz"), "--redis-url", target)
    assert b"'film-4': features: NaN and infinity" in odd.stderr
    assert b"9 new, 0 changed, 1 refused" in odd.stderr
    np.savez(tmp_path / "wide.npz", **columns(10, width=4))
    flags = ("--redis-url", target, "--model-store", str(store.root))
    wide = run("load-videos", str(tmp_path / "wide.npz"), *flags)
    assert b"4 given, the model takes 3" in wide.stderr
    missing = run("load-videos", str(tmp_path / "none.npz"), "--redis-url", target)
    assert missing.returncode == 1
    assert b"none.npz" in missing.stderr
    assert b"Traceback" not in missing.stderr


def test_a_dump_moves_everything(tmp_path: Path, target: str) -> None:
    """Users and videos come back the same; by a file or through a pipe."""

    async def fill(url: str) -> None:
        state = State(url)
        clicks = [NewClick(f"u{i % 7}", Click(1_700_000_000_000 + i, f"v{i}")) for i in range(99)]
        await state.append(clicks)
        await state.close()

    async def histories(url: str) -> list[object]:
        state = State(url)
        found = [await state.history(f"u{i}") for i in range(7)]
        await state.close()
        return [(h.meta, h.clicks) for h in found]

    with embedded_redis(tmp_path / "source") as source:
        asyncio.run(fill(source))
        path = saved("npz", tmp_path, 300)
        assert run("load-videos", str(path), "--redis-url", source).returncode == 0
        expected = asyncio.run(histories(source))
        dumped = run("dump", str(tmp_path / "all.dump"), "--redis-url", source)
        piped = run("dump", "-", "--redis-url", source)
    assert b"7 users and 300 videos written" in dumped.stderr
    restored = run("restore", "-", "--redis-url", target, stdin=piped.stdout)
    assert b"7 new users, 300 videos, 300 videos written" in restored.stderr
    assert asyncio.run(histories(target)) == expected
    again = run("restore", str(tmp_path / "all.dump"), "--redis-url", target)
    assert b"7 users, 0 new users, 300 videos, 0 videos written" in again.stderr
    assert asyncio.run(histories(target)) == expected


@pytest.mark.parametrize("damage", ["short", "altered", "other"])
def test_a_damaged_dump_changes_nothing(tmp_path: Path, target: str, damage: str) -> None:
    """Cut short, altered or something else: refused before anything is written."""
    path = tmp_path / "some.dump"
    videos = saved("npz", tmp_path, 50)
    with embedded_redis(tmp_path / "source") as source:
        run("load-videos", str(videos), "--redis-url", source)
        run("dump", str(path), "--redis-url", source)
    data = bytearray(path.read_bytes())
    if damage == "altered":
        data[len(data) // 2] ^= 1
    path.write_bytes({"short": data[:-5], "altered": data, "other": b"x" * 100}[damage])
    refused = run("restore", str(path), "--redis-url", target)

    assert refused.returncode == 1
    assert b"dump" in refused.stderr
    assert b"Traceback" not in refused.stderr

    async def registered() -> list[bool]:
        state = State(target)
        found = await state.registered([f"film-{i}" for i in range(50)])
        await state.close()
        return found

    assert not any(asyncio.run(registered()))


def test_help_teaches_the_verbs() -> None:
    """Every verb has its help, and an unknown one lists them."""
    assert b"load-videos, dump, restore" in run("--help").stdout
    for verb in ("serve", "load-videos", "dump", "restore"):
        assert run(verb, "--help").returncode == 0
    assert b"serve, load-videos, dump, restore" in run("frobnicate").stderr
