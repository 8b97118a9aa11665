"""What the demo reads, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "deploy" / "demo.py"


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_demo_explains_itself() -> None:
    """The demo lists its options without doing anything."""
    done = run_demo("--help")

    assert done.returncode == 0
    assert "--once" in done.stdout


def test_a_missing_log_ends_the_demo(tmp_path: Path) -> None:
    """Without the log it was pointed at, the demo ends with status 1 and names the step."""
    done = run_demo("--once", "--data", str(tmp_path / "nowhere"), "--work", str(tmp_path))

    assert done.returncode == 1
    assert "demo: -m training fit" in done.stderr
    assert "Traceback" not in done.stderr
