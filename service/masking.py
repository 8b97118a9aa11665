"""What must never be shown, and how it is shown instead."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

MASK: Final = "***"

# All before the last @ that may belong to the authority: a password with a bare / or @ in it is
# no good address, but must not be shown either.
_USER_INFO: Final = re.compile(r"(?P<start>^[^:/@?]*://|^)(?P<info>.*)@", re.DOTALL)
_PASSWORD_OPTION: Final = re.compile(r"(?P<start>[?&][^=&]*password=)[^&]*", re.IGNORECASE)
_SHORTEST: Final = 4


def masked_url(url: str) -> str:
    """Return an address of Redis without its password, well-formed or not."""
    shown = _PASSWORD_OPTION.sub(rf"\g<start>{MASK}", url)
    return _USER_INFO.sub(_masked_info, shown, count=1)


def secrets_of(url: str | None) -> tuple[str, ...]:
    """Return what of an address must not be shown: its password, as written and as meant.

    A password of less than four letters is left out: masking every such piece of text would
    say more about it than it hides.
    """
    found = _USER_INFO.search(url or "")
    pieces = [found["info"].partition(":")[2]] if found else []
    pieces += [option.group().partition("=")[2] for option in _PASSWORD_OPTION.finditer(url or "")]
    both = {form for piece in pieces for form in (piece, unquote(piece))}
    return tuple(sorted((s for s in both if len(s) >= _SHORTEST), key=len, reverse=True))


def _masked_info(found: re.Match[str]) -> str:
    user, colon, _ = found["info"].partition(":")
    # Without a colon nobody knows whether it is a name or a password.
    return f"{found['start']}{user}:{MASK}@" if colon else f"{found['start']}{MASK}@"
