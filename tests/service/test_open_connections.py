"""Workers see how many connections the others have open."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from service import open_connections
from service.open_connections import OpenConnections


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of the file that they share."""
    return tmp_path / "connections"


def test_who_has_fewer_is_seen(path: Path) -> None:
    first, second = OpenConnections(path), OpenConnections(path)
    assert not first.others_have_fewer()
    assert not second.others_have_fewer()

    first.add(2)
    second.add(1)
    assert first.others_have_fewer()
    assert not second.others_have_fewer()

    first.add(-1)
    assert not first.others_have_fewer()


def test_who_takes_no_more_is_not_waited_for(path: Path) -> None:
    """Its connections end nevertheless, and it may begin anew."""
    first, second = OpenConnections(path), OpenConnections(path)
    first.add(3)
    second.add(1)
    second.leave()
    second.add(-1)
    assert not first.others_have_fewer()

    OpenConnections(path)
    assert first.others_have_fewer()


def _begin_and_end(path: Path) -> None:
    OpenConnections(path)


def test_who_was_killed_is_not_waited_for_and_leaves_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_connections, "_BYTES", 2 * 8)
    first = OpenConnections(path)
    first.add(1)
    for _ in range(3):
        # Without leave(): as if it were killed.
        process = multiprocessing.get_context("spawn").Process(target=_begin_and_end, args=(path,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert not first.others_have_fewer()

    OpenConnections(path)
    with pytest.raises(OSError, match="2 workers are alive"):
        OpenConnections(path)
