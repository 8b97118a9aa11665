"""The figures of a CUDA device that need no device to be made."""

from __future__ import annotations

import math

import pytest

from benchmarks.serving.gpu import measure_gpu, outside_kernels
from model_store import find_device


def test_the_share_outside_kernels_is_the_rest_of_utilization() -> None:
    """Early samples and words are left out; without a sample there is no share."""
    assert outside_kernels(["0", "90", "80", "70"]) == 1 - 0.8
    assert outside_kernels(["10", "[N/A]", "10", "10", "10"]) == 0.9
    assert math.isnan(outside_kernels([]))


def test_without_a_device_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """And that is said."""
    if find_device("auto").kind == "cuda":
        pytest.skip("there is a CUDA device here")
    assert measure_gpu(rounds=1, seconds=0.1) == ({}, {})
    assert "no CUDA device" in capsys.readouterr().out
