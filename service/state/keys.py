"""The names of everything in Redis.

* ``u:{USER}:h`` list: the newest 160 clicks, oldest first
* ``u:{USER}:m`` string: version, length, deletion; marks of the newest 160 event ids
* ``u:{USER}:p`` string: profile, opaque here
* ``u:{USER}:l`` string: lease of the process that computes the profile
* ``v:{TAG}:ID`` string: category and features as float16
* ``c:{TAG}`` stream: log of changed videos and deleted users
* ``w:recent`` string: videos used last, for processes that start
* ``w:probe`` string: written by the doctor, gone at once

What stands in braces decides the slot of a cluster: all keys of a user share one. Videos
share 64 of them, spread evenly, so that a script writes videos and their log at once.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Final, NamedTuple

GROUPS: Final = 64
RECENT: Final = "w:recent"
PROBE: Final = "w:probe"

_SLOTS: Final = 16_384


class UserKeys(NamedTuple):
    """The keys of one user."""

    history: str
    meta: str
    profile: str
    lease: str


def user_keys(user_id: str) -> UserKeys:
    """Return the keys of a user."""
    # A brace inside the id would end the hash tag early, or make it empty.
    tag = user_id.replace("%", "%25").replace("}", "%7D")
    start = f"u:{{{tag}}}:"
    return UserKeys(start + "h", start + "m", start + "p", start + "l")


def user_of(meta_key: str) -> str:
    """Return the user whose meta this key holds."""
    return meta_key[3:-3].replace("%7D", "}").replace("%25", "%")


def group_of(identifier: str) -> int:
    """Return the group of a video, or of a user's deletion: 0 to 63."""
    return binascii.crc32(identifier.encode()) % GROUPS


def video_key(video_id: str) -> str:
    """Return the key of a video."""
    return f"v:{{{TAGS[group_of(video_id)]}}}:{video_id}"


def video_of(video_key: str) -> str:
    """Return the video whose key this is."""
    return video_key.partition("}:")[2]


def log_key(group: int) -> str:
    """Return the key of a group's change log."""
    return f"c:{{{TAGS[group]}}}"


def by_group(identifiers: Iterable[str]) -> dict[int, list[int]]:
    """Return the places of ids by group."""
    groups: dict[int, list[int]] = {}
    for place, identifier in enumerate(identifiers):
        groups.setdefault(group_of(identifier), []).append(place)
    return groups


def _even_tags() -> list[str]:
    # One tag in the middle of every 64th of the slots, found by trying numbers: a cluster of
    # up to 64 equal masters then holds equal shares.
    width = _SLOTS // GROUPS
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < GROUPS:
        slot = binascii.crc_hqx(str(number).encode(), 0) % _SLOTS
        group, place = divmod(slot, width)
        if abs(place - width // 2) <= 8:  # noqa: PLR2004  near enough to the middle
            tags.setdefault(group, str(number))
        number += 1
    return [tags[group] for group in range(GROUPS)]


TAGS: Final = _even_tags()
"""Hash tag of each group; a part of the stored format."""
