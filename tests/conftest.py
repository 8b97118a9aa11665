"""What holds for every test of the project."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# The machine decides how long an example takes; the whole test has its own timeout.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


REDIS_REQUIRED = os.environ.get("REQUIRE_REDIS", "") not in {"", "0"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip for want of a program into a failure where REQUIRE_REDIS is set."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a module that skips itself."""
    report = yield
    refuse_skip(report)
    return report


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Fail what was skipped for a reason that names redis, or a program that apt installs."""
    reason = str(report.longrepr).lower()
    wanted = "redis" in reason or "apt-get install" in reason
    if REDIS_REQUIRED and report.skipped and wanted:
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_REDIS is set, so this must not be skipped: {report.longrepr}"
