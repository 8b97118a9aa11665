"""A wish to stop is noted once; who insists is obeyed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from training.interruption import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    """It does not end anything by itself; afterwards signals do what they did before."""
    before = signal.getsignal(number)
    with stop_request(patient=False) as request:
        assert request.signal_number is None
        os.kill(os.getpid(), number)
        assert request.signal_number == number
    assert signal.getsignal(number) is before


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """Python's own handler, which a process that was started in the background lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_second_ctrl_c_ends_at_once() -> None:
    """The handler from before is back after the first signal."""
    with stop_request(patient=False):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_launcher_may_repeat_itself() -> None:
    """Patient, it takes a second signal as the same wish."""
    with stop_request(patient=True) as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal_number == signal.SIGINT


def test_a_thread_gets_no_signals() -> None:
    """Elsewhere than in the main thread nothing is noted, and nothing fails."""

    def wait() -> int | None:
        with stop_request(patient=False) as request:
            return request.signal_number

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(wait).result() is None
