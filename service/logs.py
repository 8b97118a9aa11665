"""Log lines: JSON, one event a line, or text for a person; never a user's history or a secret."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import orjson

from service.masking import MASK
from service.request_context import CURRENT

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "color_message",
    "private",
}
_CHAIN: Final = 5
_IDS: Final = ("request_id", "trace_id", "span_id")

_log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; what ``extra`` carried becomes its keys.

    Args:
        secrets: what is masked wherever it stands.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        forms = {form for secret in secrets for form in _forms(secret)}
        self._secrets = tuple(sorted(forms, key=len, reverse=True))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "event": record.getMessage(),
        }
        entry |= _more(record, _IDS)
        if record.exc_info:
            entry["exception"] = _exception(self, record)
        try:
            line = orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Names of files need not be Unicode.
            line = json.dumps(entry, default=str)
        return _masked(line, self._secrets)


class TextFormatter(logging.Formatter):
    """Formats a record for a person at a terminal.

    Args:
        secrets: what is masked wherever it stands.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of an exception."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        head = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d} {record.levelname:<7}"
        more = " ".join(f"{name}={value}" for name, value in _more(record, _IDS[:1]).items())
        line = f"{head} {record.getMessage()}" + (f"  {more}" if more else "")
        if record.exc_info:
            line += "\n" + _exception(self, record)
        return _masked(line, self._secrets)


def configure_logs(level: str = "info", form: str = "auto", secrets: Iterable[str] = ()) -> None:
    """Send everything from a level upwards to stderr.

    Args:
        level: the least that is logged.
        form: ``json``, ``text``, or ``auto``: text on a terminal.
        secrets: what is masked wherever it stands.
    """
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(secrets) if text else JsonFormatter(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught


def _more(record: logging.LogRecord, ids: Iterable[str]) -> dict[str, object]:
    """Return what ``extra`` carried, and ids of the request that the line is about."""
    more = {name: value for name, value in vars(record).items() if name not in _PLAIN}
    request = CURRENT.get()
    if request is not None:
        for name in ids:
            more.setdefault(name, getattr(request, name))
    return more


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Write an exception; without the words of those that may quote a user or a video.

    Errors of a library carry the value that they stumbled over. Where that may come from a caller
    or from Redis the kinds of the errors and the places in the code must do.
    """
    error = record.exc_info[1] if record.exc_info else None
    private = getattr(record, "private", False) or record.name == "asyncio"
    if error is None or not (private or CURRENT.get() is not None):
        return formatter.formatException(record.exc_info) if record.exc_info else ""
    pieces: list[str] = []
    while error is not None and len(pieces) < _CHAIN:
        frames = "".join(traceback.format_tb(error.__traceback__))
        pieces.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or error.__context__
    return "\ncaused by\n".join(pieces)


def _forms(secret: str) -> tuple[str, ...]:
    """Return a secret as it may stand in a line: as it is, and in a string of JSON."""
    text = json.dumps(secret)[1:-1]
    return secret, text, json.dumps(secret, ensure_ascii=False)[1:-1]


def _masked(line: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        line = line.replace(secret, MASK)
    return line


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, Exception):
        _log.critical("the process ends with an error", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)
