"""Everything that the trainer can refuse.

TrainingError
+-- DataError       a log, a feature file or a checkpoint that cannot be used
+-- ConfigError     unknown keys or impossible values, all faults at once
+-- DivergedError   a loss or scores that are no numbers any more
+-- PrecisionError  a lower precision that would change rankings
+-- StoppedError    a signal asked for an end; what was done is saved
"""

from __future__ import annotations


class TrainingError(Exception):
    """Root of all errors that the trainer raises for its user to mend."""


class DataError(TrainingError):
    """Input files that cannot be used; the message names file, place and reason."""


class ConfigError(TrainingError):
    """A configuration that cannot be used; the message lists every fault."""


class DivergedError(TrainingError):
    """A loss or scores that are not finite; nothing is saved of the epoch they appeared in.

    Args:
        epoch: from 1.
        found: what was seen.
        learning_rate: what the configuration says.
    """

    def __init__(self, epoch: int, found: str, learning_rate: float) -> None:
        super().__init__(
            f"epoch {epoch} diverged: {found}. What was saved before stays; lower "
            f"optim.learning_rate, which is {learning_rate:g}, and take another --out"
        )


class PrecisionError(TrainingError):
    """A lower precision that may not be exported; the message gives value and limit."""


class StoppedError(TrainingError):
    """A signal ended a run early, and the run is saved; the message says where it stands.

    Args:
        place: how far the run is.
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, place: str, signal_number: int) -> None:
        super().__init__(place)
        self.signal_number = signal_number
