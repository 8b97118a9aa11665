"""Ctrl-C and SIGTERM as a wish that a run grants between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked for an end.

    Attributes:
        signal_number: of the signal that asked; nothing if none did.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextlib.contextmanager
def stop_request(*, patient: bool) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying of it.

    Args:
        patient: also ignore further ones (a launcher repeats them); if not, the second one ends
            the process at once.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = request.signal_number or number
        if not patient:
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
