"""What users were shown and what they clicked, counted: on that hangs what can be learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class UserCounts:
    """Counts of impressions by user, ascending by id.

    Attributes:
        shown: [users], impressions.
        clicks: [users], those of them that were clicked.
    """

    shown: IntArray
    clicks: IntArray

    @classmethod
    def of(cls, parts: Iterable[tuple[IntArray, FloatArray]]) -> UserCounts:
        """Count impressions that come in parts: user ids and labels; a user may be in several."""
        users, shown, clicks = ([np.zeros(0, np.int64)] for _ in range(3))
        for user_ids, labels in parts:
            ids, user = np.unique(user_ids, return_inverse=True)
            users.append(ids)
            shown.append(np.bincount(user, minlength=len(ids)))
            clicks.append(np.bincount(user, labels, minlength=len(ids)).astype(np.int64))
        _, place = np.unique(np.concatenate(users), return_inverse=True)
        return cls(
            *(
                np.bincount(place, np.concatenate(column)).astype(np.int64)
                for column in (shown, clicks)
            )
        )

    @property
    def has_both(self) -> npt.NDArray[np.bool_]:
        """[users], who clicked something and passed something over: they have pairs, and an AUC."""
        return (self.clicks > 0) & (self.clicks < self.shown)

    def drawn(self, negatives_per_positive: float) -> IntArray:
        """[users], impressions that an epoch keeps where negatives are drawn beside clicks."""
        # In single precision, as labels are: a product that is rounded otherwise is another count.
        most = np.floor(self.clicks.astype(np.float32) * (1 + negatives_per_positive))
        return np.minimum(self.shown, most.astype(np.int64))


def joined_counts(parts: Sequence[UserCounts]) -> UserCounts:
    """Put counts of different users one after another."""
    return UserCounts(
        np.concatenate([part.shown for part in parts]),
        np.concatenate([part.clicks for part in parts]),
    )
