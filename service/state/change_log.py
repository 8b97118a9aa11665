"""The change logs: what they say, and what they may have lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.state.facts import Changes, Cursors
from service.state.keys import GROUPS, log_key


def read_logs(
    logs: Mapping[str, Sequence[tuple[bytes, Mapping[bytes, bytes]]]],
    cursors: Cursors,
) -> Changes:
    """Read what the logs say beyond ``cursors``: entries by key of the log, as XREAD gives them."""
    following = dict(cursors)
    videos: list[tuple[str, int]] = []
    users: list[bytes] = []
    unknown_before_ms, gap = 0, False
    for group in range(GROUPS):
        entries = logs.get(log_key(group), ())
        if not entries:
            continue
        # A number that does not follow: the log was trimmed, or is another one.
        if int(entries[0][1][b"n"]) != cursors.get(group, (b"", 0))[1] + 1:
            unknown_before_ms = max(unknown_before_ms, _moment(entries[0][0]))
            gap = gap or group in cursors
        for moment, fields in entries:
            if b"user" in fields:
                users.append(fields[b"user"])
            else:
                ids = fields[b"videos"].decode().split("\n")
                videos += [(video_id, _moment(moment)) for video_id in ids]
        following[group] = (entries[-1][0], int(entries[-1][1][b"n"]))
    return Changes(following, videos, users, unknown_before_ms, gap)


def _moment(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
