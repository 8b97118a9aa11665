"""The change logs: what they say, and what they may have lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from service.state.facts import Changes, Cursors
from service.state.keys import GROUPS, log_key

_BEGINNING: Final = (b"0", 0)


def read_logs(
    logs: Mapping[str, Sequence[tuple[bytes, Mapping[bytes, bytes]]]],
    cursors: Cursors,
) -> Changes:
    """Read what the logs say beyond ``cursors``: entries by key of the log, as XREAD gives them."""
    # An empty log is one that was read, too: what is trimmed from it later was missed.
    following = {group: cursors.get(group, _BEGINNING) for group in range(GROUPS)}
    videos: list[tuple[str, int]] = []
    appeared: list[str] = []
    users: list[tuple[bytes, int]] = []
    unknown_before_ms, gap = 0, False
    for group in range(GROUPS):
        entries = logs.get(log_key(group), ())
        if not entries:
            continue
        # A number that does not follow: the log was trimmed, or is another one.
        if int(entries[0][1][b"n"]) != following[group][1] + 1:
            unknown_before_ms = max(unknown_before_ms, _moment(entries[0][0]))
            gap = gap or group in cursors
        for moment, fields in entries:
            if b"user" in fields:
                users.append((fields[b"user"], int(fields.get(b"version", 0))))
            else:
                videos += [(video_id, _moment(moment)) for video_id in _ids(fields, b"videos")]
                appeared += _ids(fields, b"appeared")
        following[group] = (entries[-1][0], int(entries[-1][1][b"n"]))
    return Changes(following, videos, appeared, users, unknown_before_ms, gap)


def _ids(fields: Mapping[bytes, bytes], name: bytes) -> list[str]:
    text = fields.get(name)
    return text.decode().split("\n") if text else []


def _moment(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
