"""Whether it pays to score with the profile in memory while Redis is asked."""

from __future__ import annotations

from typing import Final

from service import metrics

_WORTH_IT: Final = 0.7
_LEARNING: Final = 0.02
_TRY_AGAIN: Final = 50
_GUESSES: Final = {
    right: metrics.GUESSES.labels("right" if right else "wrong") for right in (True, False)
}


class Luck:
    """Whether guesses are right often enough to be worth the work of wrong ones."""

    def __init__(self) -> None:
        self._share = 1.0
        self._skipped = 0

    @property
    def is_good(self) -> bool:
        """Whether guesses have been worth it."""
        return self._share >= _WORTH_IT

    def worth_trying(self) -> bool:
        """Say whether to guess; now and then also when it has not been worth it."""
        if self.is_good:
            return True
        self._skipped = (self._skipped + 1) % _TRY_AGAIN
        return self._skipped == 0

    def note(self, *, right: bool) -> None:
        """Learn whether a guess was right."""
        metrics.KEPT.count(_GUESSES[right])
        self._share += _LEARNING * (right - self._share)
