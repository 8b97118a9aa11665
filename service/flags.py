"""The settings as flags of a command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from service.settings import Settings
from service.settings_page import settings


def flag_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Make a parser with a flag for each setting."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="Each flag is also an environment variable: --data-dir is CTR_DATA_DIR. Other "
        "verbs, each with its own --help: serve, doctor, settings, load-videos, dump, restore.",
    )
    for setting in settings():
        # A percent sign would begin a format.
        text = setting.meaning.replace("%", "%%").replace("`", "")
        if setting.default:
            text += f"; default: {setting.default}"
        if setting.switch:
            parser.add_argument(setting.flag, action="store_const", const="true", help=text)
        else:
            kind = setting.name.rpartition("_")[2].upper()
            parser.add_argument(setting.flag, metavar=kind, help=text)
    return parser


def take_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse, and put what was given into the environment, where every process looks for it."""
    options = parser.parse_args(arguments)
    for setting in settings():
        value = getattr(options, setting.name)
        if value is not None:
            os.environ[setting.variable] = value
    return options


def from_environment() -> Settings:
    """Read the settings.

    Raises:
        ValidationError: one is missing, or has no good value.
    """
    return Settings()  # type: ignore[call-arg]  # they come from the environment
