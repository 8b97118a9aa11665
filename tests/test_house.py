"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model_store", "service", "training")
MODULES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
MODULE_LINES = 400
FUNCTION_LINES = 60
GRAB_BAGS = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base", "constants"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short(path: Path) -> None:
    """A module has fewer than 400 lines."""
    assert len(path.read_text().splitlines()) < MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_is_short(path: Path) -> None:
    """A function fits on a screen, its docstring included."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {
        f.name: lines
        for f in functions
        if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > FUNCTION_LINES
    }

    assert not long


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_named_for_its_one_thing(path: Path) -> None:
    """No module is a grab bag."""
    assert path.stem not in GRAB_BAGS


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_and_packaged(package: str) -> None:
    """Every folder with code is in the distribution and carries py.typed at its root."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent for p in MODULES if p.relative_to(ROOT).parts[0] == package}
    names = {".".join(p.relative_to(ROOT).parts) for p in folders}

    assert names <= set(setup["packages"])
    assert (ROOT / package / "py.typed").is_file()


def test_every_lint_exception_has_its_reason() -> None:
    """Each rule that ruff is told to ignore says why on the same line."""
    text = (ROOT / "pyproject.toml").read_text()
    bare = [line for line in text.splitlines() if re.fullmatch(r'\s+"[A-Z]+[0-9]*",\s*', line)]

    assert not bare
