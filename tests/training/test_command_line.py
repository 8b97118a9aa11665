"""The command line teaches: every verb and option is explained, every example runs."""

from __future__ import annotations

import argparse
import shlex
import tomllib

import pytest

from training.__main__ import _VERBS, main
from training.command_line import make_parser
from training.config import PRESETS, load_config, parse_config


def _verbs() -> dict[str, argparse.ArgumentParser]:
    actions = make_parser()._actions
    return next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("name", sorted(_verbs()))
def test_a_verb_explains_itself(name: str) -> None:
    """It says what it does, what each option means, and shows itself at work."""
    verb = _verbs()[name]

    assert name in _VERBS
    assert verb.description
    assert verb.description.endswith(".")
    assert [action.dest for action in verb._actions if not action.help] == []
    assert f"python -m training {name}" in (verb.epilog or "")


@pytest.mark.parametrize("name", ["the whole", *sorted(_verbs())])
def test_what_help_shows_can_be_typed(name: str) -> None:
    """Every command in the help texts is one that the parser takes."""
    parser = make_parser() if name == "the whole" else _verbs()[name]
    text = (parser.epilog or "").replace("\\\n", " ")
    commands = [
        shlex.split(line.partition(" #")[0].partition("training ")[2])
        for line in text.splitlines()
        if line.startswith("  ") and "-m training " in line
    ]

    assert commands
    for command in commands:
        if "VERB" not in command:
            make_parser().parse_args(command)


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_prints_a_preset_that_is_one(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is TOML with comments, and means the preset."""
    assert main(["settings", "--preset", preset]) == 0

    printed = capsys.readouterr().out
    assert "# " in printed
    values = {**tomllib.loads(printed), "preset": preset}
    assert parse_config(values, source="printed") == load_config(preset)


def test_only_fit_runs_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another verb under torchrun is refused rather than done twice at the same time."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert main(["settings"]) == 1
    assert "only fit takes torchrun" in capsys.readouterr().err


def test_help_says_what_holds_for_each_preset_and_each_contender() -> None:
    """When a run stops hangs on the preset; --config leaves contenders with their own file alone."""
    fit, compare = _verbs()["fit"], _verbs()["compare"]
    config = next(action for action in compare._actions if action.dest == "config")

    assert "paper after epochs that hardly lower the\ntraining loss" in (fit.description or "")
    assert "models that name no file" in (config.help or "")
