"""What a check found: a name, a verdict, what was seen, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check.
        verdict: PASS; WARN: it will run, and should be better; FAIL: it will not do.
        seen: what was seen.
        fix: what to do; empty for PASS.
    """

    name: str
    verdict: Literal["PASS", "WARN", "FAIL"]
    seen: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict}  {self.name:<18}  {self.seen}"
        return f"{line}\n{'':26}-> {self.fix}" if self.fix else line


def passed(name: str, seen: str) -> Finding:
    """All is well."""
    return Finding(name, "PASS", seen)


def warned(name: str, seen: str, *, fix: str) -> Finding:
    """It will run, and should be better."""
    return Finding(name, "WARN", seen, fix)


def failed(name: str, seen: str, *, fix: str) -> Finding:
    """It will not do."""
    return Finding(name, "FAIL", seen, fix)
