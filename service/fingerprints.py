"""Where many keys are, found at once: a table of hashes that lies flat in memory.

A dictionary follows four pointers for every key, each a wait for memory where the table is
larger than the caches, and one key after the other. Here a key is one line of 64 bytes, and numpy
fetches the lines of all keys together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from service.steps import LINE, NEVER_EMPTY, STEPS, UNUSED_BITS

_EMPTY: Final = 0


class Fingerprints:
    """Numbers of keys by their hashes.

    Python's hash of a string is keyed by a secret of the process; 63 of its bits are used. A key
    that is not here is taken for one of n that are with a chance of n / 2**63: with a million of
    them, once in nine million million questions.

    Not every key finds room in its line: what is not found here may still be known elsewhere.

    Args:
        capacity: keys at most.
    """

    def __init__(self, capacity: int) -> None:
        # Half full at most: then one key in fifty finds its line full.
        lines = 1 << (max(1, 2 * capacity // LINE) - 1).bit_length()
        self._mask = lines - 1
        # Zeros that nobody has written to take no memory.
        self._hashes = np.zeros((lines, LINE), np.int64)
        self._numbers = np.zeros(lines * LINE, np.int32)
        # Single items of an array cost numpy several times what they cost a view.
        self._hash_at = self._hashes.reshape(-1).data

    def find(self, keys: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
        """Return the numbers of keys [N], -1 for what is not here, and how many are."""
        return STEPS.find(keys, self._hashes, self._numbers)

    def add(self, key: str, number: int) -> bool:
        """Remember a key that is not here; whether it may be told from those that are."""
        found, line, first = self._line(key)
        if found in line:
            return False
        if _EMPTY in line:
            place = first + line.index(_EMPTY)
            self._hash_at[place] = found
            self._numbers[place] = number
        return True

    def drop(self, key: str) -> None:
        """Forget a key, if it is here."""
        found, line, first = self._line(key)
        if found in line:
            self._hash_at[first + line.index(found)] = _EMPTY

    def _line(self, key: str) -> tuple[int, list[int], int]:
        found = hash(key)
        first = ((found >> UNUSED_BITS) & self._mask) * LINE
        return found | NEVER_EMPTY, self._hash_at[first : first + LINE].tolist(), first
