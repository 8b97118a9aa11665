"""A log that cannot be learnt from, or not be measured on, is refused before anything is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from training.compare import compare, contenders
from training.config import RunConfig, parse_config
from training.errors import DataError
from training.fit import fit
from training.interactions import ClickLog, Impressions
from training.processes import Processes
from training.shards import Shards
from training.sufficiency import check_sufficient

USERS, VIDEOS = 12, 40
SHARES = r"data\.validation_item_share \(0\.3\) and data\.validation_time_share \(0\.9\)"


def _config(model: str = "thacil", **optim: JsonValue) -> RunConfig:
    network = {"item_dim": 4, "category_dim": 4, "num_heads": 2, "num_blocks": 2, "block_size": 3}
    return parse_config(
        {
            "preset": "modern",
            "model": model,
            "threads": 1,
            "network": {**network, "hidden_dim": 4},
            "data": {"validation_item_share": 0.3, "validation_time_share": 0.9},
            "optim": {"batch_size": 16, "max_epochs": 1, **optim},
        },
        source="test",
    )


def _log(clicked: Callable[[int, int], bool]) -> ClickLog:
    """Every user sees every video once; ``clicked(user, video)`` says which are clicked."""
    user, item = (grid.ravel() for grid in np.mgrid[:USERS, :VIDEOS])
    labels = np.array([clicked(u, v) for u, v in zip(user.tolist(), item.tolist(), strict=True)])
    rows = Impressions(
        user, item, item % 2, labels.astype(np.float32), np.arange(len(user)) % VIDEOS + 1000
    )
    return ClickLog(rows, np.ones((VIDEOS, 3), np.float32), None, None, 2)


def _held(config: RunConfig, log: ClickLog) -> set[int]:
    return set(np.flatnonzero(Shards(config, log).split.held).tolist())


def test_validation_needs_a_user_with_both(tmp_path: Path) -> None:
    """Clicks of some users and non-clicks of others rank nobody's impressions."""
    config = _config()
    held = _held(config, _log(lambda user, _: user % 2 == 0))
    log = _log(lambda user, video: (user if video in held else video) % 2 == 0)

    with pytest.raises(DataError, match=f"no user of the validation split .*{SHARES}"):
        fit(config, log, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("is_held", "name"), [(True, "validation"), (False, "training")])
@pytest.mark.parametrize(("label", "lacking"), [(False, "clicks"), (True, "non-clicks")])
def test_each_split_needs_clicks_and_others(
    tmp_path: Path, *, is_held: bool, name: str, label: bool, lacking: str
) -> None:
    """What is missing where is told, with the settings that decide the split."""
    config = _config()
    held = _held(config, _log(lambda user, _: user % 2 == 0))
    log = _log(lambda _, video: label if (video in held) is is_held else video % 2 == 0)

    with pytest.raises(DataError, match=f"the {name} split of .* lacks {lacking}; {SHARES}"):
        fit(config, log, tmp_path / "run")


def test_pairs_need_a_user_with_both(tmp_path: Path) -> None:
    """BPR has nothing to learn from without; elsewhere that share of the loss would be nothing."""
    held = _held(_config(), _log(lambda user, _: user % 2 == 0))
    log = _log(lambda user, video: (video if video in held else user) % 2 == 0)

    with pytest.raises(DataError, match=r"no user .* no pair .*bpr.*--model"):
        fit(_config("bpr"), log, tmp_path / "bpr")
    with pytest.raises(DataError, match=r"no user .* no pair .*optim\.pairwise_share.* is 0\.5"):
        fit(_config(pairwise_share=0.5), log, tmp_path / "pairs")
    assert fit(_config(pairwise_share=0.0), log, tmp_path / "run").done


def test_a_comparison_needs_a_test_user_with_both(tmp_path: Path) -> None:
    """It is refused before the first model is trained."""
    log = _log(lambda _, video: video % 3 == 0)
    test = _log(lambda user, _: user % 2 == 0)
    log = ClickLog(log.train, log.train_features, test.train, test.train_features, 2)

    with pytest.raises(DataError, match="no test user has both"):
        compare(contenders(["thacil"]), log, tmp_path, seeds=1, say=lambda _: None)
    assert not list(tmp_path.iterdir())


def together(count: int, work: Callable[[Processes], None]) -> None:
    """Do the work of several processes in threads, which hear one another."""
    told: list[tuple[float, ...]] = [()] * count
    barrier = threading.Barrier(count, timeout=60)

    class Speaking(Processes):
        def sum(self, *values: float) -> list[float]:
            return [sum(column) for column in self._columns(*values)]

        def lowest(self, value: int) -> int:
            return int(min(*self._columns(value)))

        def _columns(self, *values: float) -> list[tuple[float, ...]]:
            told[self.rank] = values
            barrier.wait()
            columns = list(zip(*told, strict=True))
            barrier.wait()
            return columns

    def run(rank: int) -> None:
        processes = Speaking(rank, count)
        work(processes)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def _check_together(config: RunConfig, log: ClickLog) -> None:
    log, _ = log.indexed()
    together(2, lambda ours: check_sufficient(config, Shards(config, log, ours), ours))


def test_users_are_counted_over_all_processes() -> None:
    """One process's users may have one class only, if another's have both."""
    config, half = _config(), USERS // 2

    _check_together(config, _log(lambda user, video: user < half and video % 2 == 0))
    _check_together(config, _log(lambda user, video: user < half or video % 2 == 0))
    held = _held(config, _log(lambda user, _: user % 2 == 0))
    with pytest.raises(DataError, match="no user of the validation split"):
        _check_together(
            config, _log(lambda user, video: (user if video in held else video) % 2 == 0)
        )


def test_a_process_without_a_step_is_told_for_what_its_model_learns_from() -> None:
    """Of its users there is no pair, no click beside which to draw, or no impression at all."""
    half = USERS // 2
    one_sided = _log(lambda user, video: user < half and video % 2 == 0)
    with pytest.raises(DataError, match=r"2 processes has no pair .* start fewer"):
        _check_together(_config("bpr"), one_sided)

    config = _config()
    drawn = config.data.model_copy(update={"negatives_per_positive": 1.0})
    with pytest.raises(DataError, match=r"2 processes has no click .* start fewer"):
        _check_together(config.model_copy(update={"data": drawn}), one_sided)

    held = np.array(sorted(_held(config, one_sided)))
    log, index = one_sided.indexed()
    items = np.where(log.train.user_ids < half, log.train.item_ids, held[log.train.item_ids % 3])
    # The same videos are named as before, so that the same ones are held out.
    columns = {name: getattr(log.train, name) for name in ("user_ids", "categories")}
    rest = {name: getattr(log.train, name) for name in ("labels", "timestamps_ms")}
    unlearnt = ClickLog(
        Impressions(item_ids=items, **columns, **rest), log.train_features, None, None, 2
    )
    assert len(index.users) == USERS
    with pytest.raises(DataError, match=r"2 processes has no impression .* start fewer"):
        _check_together(config, unlearnt)
