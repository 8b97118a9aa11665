"""The verbs beside ``serve``: they speak to Redis, not to a running service."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from tqdm import tqdm

from model_store import ModelStore, ModelStoreError
from service.dump_file import DumpError, DumpWriter, read_dump
from service.embedded_redis import EmbeddedRedisError, embedded_redis, running_redis
from service.loader import load_videos
from service.settings import Settings
from service.state import AddressError, StateDownError
from service.state.transfer import Transfer, UserFacts, VideoFacts
from service.video_files import VideoFileError

_BATCH: Final = 500


def load_verb(arguments: Sequence[str]) -> int:
    """``load-videos FILE``."""
    parser = _parser(
        "load-videos",
        "Load videos into Redis: an .npz, a directory of .npy files, Arrow, Feather or Parquet, "
        "with video_id, category and features. Interrupted, the same command goes on.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--model-store", metavar="DIR", help="check widths against its version")
    options = parser.parse_args(arguments)

    async def load(url: str) -> None:
        width = None
        if options.model_store:
            store = ModelStore(Path(options.model_store))
            width = store.manifest(store.current()).layout.feature_dim
        loaded = await load_videos(options.file, url, lifetimes=_settings().lifetimes, width=width)
        _say(
            f"{loaded.rows:,} videos in {loaded.seconds:.1f} s "
            f"({loaded.rows / max(loaded.seconds, 1e-9):,.0f} a second): {loaded.new:,} new, "
            f"{loaded.changed:,} changed, {loaded.faults:,} refused"
        )

    return _run(options, load)


def dump_verb(arguments: Sequence[str]) -> int:
    """``dump FILE``."""
    parser = _parser("dump", "Write all users and videos to a file, or to stdout.")
    parser.add_argument("file", metavar="FILE", help="- is stdout")
    options = parser.parse_args(arguments)

    async def dump(url: str) -> None:
        transfer = Transfer(url, lifetimes=_settings().lifetimes)
        try:
            with _output(options.file) as stream:
                writer = DumpWriter(stream)
                with tqdm(unit=" records", unit_scale=True, disable=None) as bar:
                    async for users in transfer.users():
                        for user in users:
                            writer.user(user)
                        bar.update(len(users))
                    async for videos in transfer.videos():
                        for video in videos:
                            writer.video(video)
                        bar.update(len(videos))
                writer.finish()
        finally:
            await transfer.close()
        _say(f"{writer.users:,} users and {writer.videos:,} videos written")

    return _run(options, dump)


def restore_verb(arguments: Sequence[str]) -> int:
    """``restore FILE``."""
    parser = _parser(
        "restore",
        "Put users and videos of a dump into Redis. Nothing that is there is lost: clicks of a "
        "user who is there are added to what is there, a video that is there stays.",
    )
    parser.add_argument("file", metavar="FILE", help="- is stdin, checked as it comes")
    parser.add_argument("--replace", action="store_true", help="put videos over those there")
    options = parser.parse_args(arguments)

    async def restore(url: str) -> None:
        transfer = Transfer(url, lifetimes=_settings().lifetimes)
        counts = {"users": 0, "new users": 0, "videos": 0, "videos written": 0}
        try:
            with (
                _input(options.file) as stream,
                tqdm(unit=" records", unit_scale=True, disable=None) as bar,
            ):
                for batch in _batches(read_dump(stream)):
                    users = [record for record in batch if isinstance(record, UserFacts)]
                    videos = [record for record in batch if isinstance(record, VideoFacts)]
                    counts["users"] += len(users)
                    counts["new users"] += await transfer.put_users(users)
                    counts["videos"] += len(videos)
                    counts["videos written"] += await transfer.put_videos(
                        videos, replace=options.replace
                    )
                    bar.update(len(batch))
        finally:
            await transfer.close()
            _say(", ".join(f"{count:,} {name}" for name, count in counts.items()))

    return _run(options, restore)


COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "load-videos": load_verb,
    "dump": dump_verb,
    "restore": restore_verb,
}


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m service {verb}", description=description)
    parser.add_argument(
        "--redis-url", metavar="URL", help="default: CTR_REDIS_URL, REDIS_URL, the embedded Redis"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="of the embedded Redis, default: CTR_DATA_DIR or var"
    )
    return parser


def _settings() -> Settings:
    # The verbs need no model: only where and how long facts are kept.
    os.environ.setdefault("CTR_MODEL_STORE", ".")
    return Settings()  # type: ignore[call-arg]  # from the environment


def _run(options: argparse.Namespace, work: Callable[[str], Coroutine[Any, Any, None]]) -> int:
    try:
        with _address(options) as url:
            asyncio.run(work(url))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on")
        return 130
    except (
        AddressError,
        DumpError,
        EmbeddedRedisError,
        ModelStoreError,
        OSError,
        StateDownError,
        VideoFileError,
    ) as exc:
        _say(str(exc))
        return 1
    return 0


@contextmanager
def _address(options: argparse.Namespace) -> Iterator[str]:
    settings = _settings()
    url = options.redis_url or settings.redis_url
    directory = Path(options.data_dir or settings.data_dir)
    url = url or running_redis(directory)
    if url:
        yield url
        return
    with embedded_redis(directory, fsync=settings.embedded_fsync) as embedded:
        yield embedded


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        return
    target = Path(name)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as file:
        try:
            yield file  # type: ignore[misc]
        except BaseException:
            Path(file.name).unlink()
            raise
        file.flush()
        os.fsync(file.fileno())
    # Under its name it is whole.
    Path(file.name).replace(target)


@contextmanager
def _input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as stream:
        # A damaged file changes nothing: it is read once before anything is written.
        for _ in read_dump(stream):
            pass
        stream.seek(0)
        yield stream


def _batches(
    records: Iterator[UserFacts | VideoFacts],
) -> Iterator[list[UserFacts | VideoFacts]]:
    batch: list[UserFacts | VideoFacts] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _say(text: str) -> None:
    print(f"service: {text}", file=sys.stderr)  # noqa: T201  a command line
