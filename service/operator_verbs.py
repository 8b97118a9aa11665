"""The verbs for whoever sets a service up: ``doctor`` and ``settings``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from service.doctor import examine
from service.findings import Finding, failed
from service.flags import flag_parser, from_environment, take_flags
from service.settings_page import faults_of, listing, page

_SETTINGS_FIX = "python -m service settings shows what is set; docs/configuration.md what can be"


def doctor_verb(arguments: Sequence[str]) -> int:
    """``doctor``: exit status 1 where a check failed."""
    parser = flag_parser(
        "python -m service doctor",
        "Check what the service needs: packages, device, model version, Redis, clock, limits. "
        "Takes the settings that serve takes. Exit status 1 where a check fails.",
    )
    take_flags(parser, arguments)
    verdicts = []
    for finding in _findings():
        verdicts.append(finding.verdict)
        print(finding, flush=True)  # noqa: T201  what it is for
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("PASS", "WARN", "FAIL"))
    print(counts)  # noqa: T201
    return 1 if "FAIL" in verdicts else 0


def settings_verb(arguments: Sequence[str]) -> int:
    """``settings``: what is set, or the page about all of them."""
    parser = flag_parser(
        "python -m service settings",
        "Print what is set, as lines of an environment file, passwords masked.",
    )
    parser.add_argument("--page", action="store_true", help="the page docs/configuration.md")
    options = take_flags(parser, arguments)
    if options.page:
        sys.stdout.write(page())
        return 0
    # What is set can be shown before everything is.
    missing = {"model_store"} if "CTR_MODEL_STORE" not in os.environ else set()
    os.environ.setdefault("CTR_MODEL_STORE", ".")
    try:
        sys.stdout.write(listing(from_environment(), without=missing))
    except ValidationError as exc:
        for fault in faults_of(exc):
            print(f"service: {fault}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _findings() -> Iterable[Finding]:
    try:
        settings = from_environment()
    except ValidationError as exc:
        return [failed("settings", fault, fix=_SETTINGS_FIX) for fault in faults_of(exc)]
    return examine(settings)
