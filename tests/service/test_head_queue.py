"""Merged or alone, in a thread or at once: a job's answer is its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store import GRAPHS_ONLY, Device, FloatArray, ModelStore, OpenVersion
from service.admission import DeadlineError
from service.head import TILE, Job, score, score_merged
from service.head_queue import Batching, HeadQueue
from service.rows import encode
from service.state import Video
from training.export import publish
from training.models.thacil import Thacil, ThacilShape

SHAPE = ThacilShape(
    feature_dim=5,
    num_categories=4,
    item_dim=8,
    category_dim=8,
    num_heads=2,
    num_blocks=3,
    block_size=4,
    hidden_dim=12,
)
FOREVER = float("inf")


@dataclass(frozen=True, repr=False)
class World:
    """A small real network, rows of videos, profiles of 1 to 3 blocks.

    Its head is opened compiled, as a graph, and as a graph on buffers that stay.
    """

    opened: OpenVersion
    graph: OpenVersion
    bound: OpenVersion
    table: FloatArray
    videos: list[Video]
    profiles: list[FloatArray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(2)
    network = Thacil(SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    store = ModelStore(tmp_path_factory.mktemp("store"))
    version = publish(network, store)
    opened = store.open(version)
    graph = store.open(version, device=GRAPHS_ONLY)
    bound = store.open(version, device=Device(bind=True))
    assert graph.model.compiled_head is bound.model.compiled_head is None
    rng = np.random.default_rng(0)
    videos = [
        Video(int(rng.integers(5)), rng.standard_normal(5).astype(np.float32)) for _ in range(300)
    ]
    table = encode(opened, videos)
    profiles = [opened.model.profile(table[:clicks]) for clicks in (1, 4, 5, 8, 12, 0)]
    return World(opened, graph, bound, table, videos, profiles)


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def job(world: World, profile: int, count: int, *, seed: int) -> Job:
    """Make a job with rows from the cache, new videos and videos that are nowhere."""
    rng = np.random.default_rng(seed)
    new = [world.videos[i] for i in rng.integers(0, 300, 3)]
    kinds = rng.choice(3, count, p=[0.8, 0.1, 0.1])
    cached, fresh = rng.integers(0, 300, count), -2 - rng.integers(0, 3, count)
    slots = np.choose(kinds, [cached, fresh, np.full(count, -1)])
    return Job(world.opened, world.profiles[profile], world.table, slots, new)


def broken(world: World) -> Job:
    """A job whose profile is not one."""
    return Job(world.opened, np.zeros((2, 3), np.float32), world.table, np.arange(4), [])


@pytest.mark.parametrize("kind", ["opened", "graph"])
@pytest.mark.parametrize("blocks", range(6))
@pytest.mark.parametrize("count", [1, 2, 33, TILE, TILE + 1])
def test_a_tile_of_any_width_is_solo_bit_for_bit(
    world: World, kind: str, blocks: int, count: int
) -> None:
    """A single candidate, too, for which ONNX Runtime has another way to multiply."""
    opened: OpenVersion = getattr(world, kind)
    small = Job(opened, world.profiles[blocks], world.table, np.arange(count) % 300, [])
    large = Job(opened, world.profiles[blocks], world.table, np.arange(290), [])
    merged = score_merged([large, small, small])

    for outcome in merged[1:]:
        assert not isinstance(outcome, Exception)
        np.testing.assert_array_equal(outcome.probabilities, score(small).probabilities)


@pytest.mark.parametrize("kind", ["opened", "graph"])
@pytest.mark.parametrize("count", [0, 1, 2, 33, TILE + 1])
def test_candidates_known_to_be_in_the_cache_are_scored_as_any(
    world: World, kind: str, count: int
) -> None:
    """From where their rows lie: bit for bit what those get that are looked through."""
    slots = np.random.default_rng(count).integers(0, 300, count)
    looked = Job(getattr(world, kind), world.profiles[3], world.table, slots, [])
    known = score(replace(looked, complete=True))

    np.testing.assert_array_equal(known.probabilities, score(looked).probabilities)
    assert known.probabilities.shape == (count,)
    assert len(known.rows) == 0


jobs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3 * TILE + 1)), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(jobs, st.integers(0, 99), st.booleans(), st.sampled_from(["opened", "graph", "bound"]))
def test_merged_is_solo_bit_for_bit(
    world: World, sizes: list[tuple[int, int]], seed: int, with_broken: bool, kind: str
) -> None:
    """Whatever runs beside a job, errors of neighbours included; on buffers that stay as without."""
    together_ = [job(world, *size, seed=seed + i) for i, size in enumerate(sizes)]
    together_ += [broken(world)] if with_broken else []
    merged = score_merged([replace(one, opened=getattr(world, kind)) for one in together_])
    solo = world.opened if kind == "opened" else world.graph
    given_jobs = [replace(one, opened=solo) for one in together_[: len(sizes)]]

    for one, together in zip(given_jobs, merged, strict=False):
        alone = score(one)
        assert not isinstance(together, Exception)
        np.testing.assert_array_equal(together.probabilities, alone.probabilities)
        np.testing.assert_array_equal(together.rows, alone.rows)
        np.testing.assert_array_equal(np.isnan(alone.probabilities), one.slots == -1)
    if with_broken:
        assert isinstance(merged[-1], Exception)


MANNERS = [
    Batching(threads=1),
    Batching(threads=2, max_rows=100),
    Batching(threads=1, inline_seconds=10.0),
    Batching(threads=2, window_seconds=0.002, merge=True, max_rows=2_000),
]


@pytest.mark.parametrize("batching", MANNERS)
async def test_concurrent_jobs_get_their_own_answers(
    world: World, executor: ThreadPoolExecutor, batching: Batching
) -> None:
    """Among neighbours that are cancelled, late or broken."""
    queue = HeadQueue(executor, batching)
    given_jobs = [job(world, i % 6, 37 * (i % 9), seed=i) for i in range(60)]
    late = asyncio.create_task(queue.score(given_jobs[5], 0.0))
    failing = asyncio.create_task(queue.score(broken(world), FOREVER))
    tasks = [asyncio.create_task(queue.score(one, FOREVER)) for one in given_jobs]
    await asyncio.sleep(0)
    for task in tasks[::7]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)

    for number, (one, outcome) in enumerate(zip(given_jobs, found, strict=True)):
        if number % 7 == 0 and isinstance(outcome, asyncio.CancelledError):
            continue
        assert not isinstance(outcome, BaseException)
        np.testing.assert_array_equal(outcome.probabilities, score(one).probabilities)
    with pytest.raises(Exception, match="profile"):
        await failing
    with pytest.raises(DeadlineError):
        await late


async def test_what_waits_while_a_thread_is_busy_goes_together(
    world: World, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One handing over for all of them, up to the limit of rows."""
    runs: list[int] = []

    def slow(batch: Sequence[tuple[Job, float]], merge: bool) -> tuple[list[object], float]:
        runs.append(len(batch))
        time.sleep(0.02)
        return [score(one) for one, _ in batch], 0.02

    monkeypatch.setattr("service.head_queue._run", slow)
    queue = HeadQueue(executor, Batching(threads=1, max_rows=500))
    await asyncio.gather(*(queue.score(job(world, 1, 88, seed=i), FOREVER) for i in range(11)))

    assert runs == [1, 5, 5]


async def test_a_job_longer_than_the_limit_goes_alone(
    world: World, executor: ThreadPoolExecutor
) -> None:
    """It is not refused here: admission decides who comes in."""
    queue = HeadQueue(executor, Batching(threads=1, max_rows=10))
    scored = await queue.score(job(world, 4, 290, seed=1), FOREVER)

    assert len(scored.probabilities) == 290
