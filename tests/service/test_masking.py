"""The password of Redis is shown nowhere: not in listings, logs, errors, answers or advice."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store import ModelStore
from service.logs import JsonFormatter, TextFormatter
from service.masking import masked_url, secrets_of
from service.settings import Settings
from service.state import AddressError
from service.state.clients import Limits, make_client

from .conftest import ROOT, serving

SECRET = "hunter-2%21-secret"  # noqa: S105  made up
URLS = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"redis://user:{SECRET}@127.0.0.1:1/0",
    f"rediss+sentinel://user:{SECRET}@127.0.0.1:1,127.0.0.1:2/master",
    f"redis+cluster://:{SECRET}@127.0.0.1:1",
    f"redis://127.0.0.1:1/0?password={SECRET}&db=1",
]
BROKEN = [
    f"redis://:pa/{SECRET}@127.0.0.1:6379",
    f"redis://:pa#{SECRET}@127.0.0.1:6379",
    f"redis://:pa@{SECRET}@127.0.0.1:port",
    f"redis+sentinel://:{SECRET}@127.0.0.1",
    f"redis+cluster://:{SECRET}/@",
    f"http://:{SECRET}@127.0.0.1",
    f":{SECRET}@127.0.0.1:6379",
    f"{SECRET}@127.0.0.1:6379",
]
LETTERS = st.text("abc:/@?#%&=.", min_size=1, max_size=12)


@pytest.mark.parametrize("url", [*URLS, *BROKEN])
def test_an_address_is_shown_without_its_password(url: str) -> None:
    """Well-formed or not, host and port stay."""
    shown = masked_url(url)

    assert SECRET not in shown
    assert "***" in shown
    assert url.startswith(BROKEN[4]) or "127.0.0.1" in shown


@given(LETTERS, st.sampled_from(["redis://", "redis+cluster://", "redis+sentinel://", ""]))
def test_no_password_is_too_odd(password: str, scheme: str) -> None:
    """Whatever stands between the colon and the last @ is masked."""
    shown = masked_url(f"{scheme}:Xx{password}xX@host:6379")

    assert "Xx" not in shown
    assert "xX" not in shown


def test_an_address_without_a_password_is_shown_as_it_is() -> None:
    """Nothing is masked that is no secret."""
    for url in ("redis://host:6379/0", "unix:///tmp/redis.sock", "redis+cluster://a:1,b:2"):
        assert masked_url(url) == url
        assert secrets_of(url) == ()
    assert secrets_of(None) == ()


@pytest.mark.parametrize("url", BROKEN)
async def test_an_address_that_is_no_good_is_refused_without_its_password(url: str) -> None:
    """The error says what to do, and neither it nor its cause quotes the password."""
    with pytest.raises(AddressError) as told:
        make_client(url, Limits(1.0, 1))

    error: BaseException | None = told.value
    while error is not None:
        assert "hunter" not in str(error)
        error = error.__cause__


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_no_log_line_has_it(formatter: type[JsonFormatter]) -> None:
    """As it stands in the address, decoded, in arguments, in fields and in exceptions."""
    meant = SECRET.replace("%21", "!")
    try:
        raise ValueError(f"no {meant} here")  # noqa: TRY301
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "at %s", (f"redis://:{SECRET}@h",), sys.exc_info(),
            extra={"more": meant},
        )  # fmt: skip
    line = formatter(secrets_of(URLS[0])).format(record)

    assert SECRET not in line
    assert meant not in line
    assert line.count("***") >= 3
    if formatter is JsonFormatter:
        assert json.loads(line)["event"] == "at redis://:***@h"


def test_a_password_that_json_must_escape_is_masked_too() -> None:
    """A quotation mark stands in a line of JSON as two characters."""
    for password in ('pass"word\\s', 'päss"wörd'):
        record = logging.makeLogRecord({"msg": password})
        line = JsonFormatter(secrets_of(f"redis://:{password}@h")).format(record)

        assert json.loads(line)["event"] == "***"


@pytest.mark.parametrize("verb", ["settings", "doctor"])
def test_no_verb_prints_it(verb: str, tmp_path: Path, store: ModelStore) -> None:
    """Neither what is set, nor what is wrong with it."""
    for url in (URLS[0], BROKEN[0]):
        done = subprocess.run(
            [sys.executable, "-m", "service", verb],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "CTR_REDIS_URL": url, "CTR_MODEL_STORE": str(store.root),
                 "CTR_DATA_DIR": str(tmp_path)},
        )  # fmt: skip
        assert "***" in done.stdout
        assert "hunter" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_settings_do_not_print_it() -> None:
    """Neither do they as text, which a debugger or an error would show."""
    settings = Settings(model_store=Path("x"), redis_url=URLS[0])

    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.redis_address == URLS[0]


def test_a_service_without_its_redis_does_not_print_it(tmp_path: Path, store: ModelStore) -> None:
    """Answers and log lines about a Redis that is away do not name the password."""
    with serving(store, tmp_path, "--redis-url", URLS[0], "--log-level", "debug") as client:
        body = {"events": [{"user_id": "u", "video_id": "v", "timestamp": 1_720_000_000_000}]}
        answers: list[httpx.Response] = [
            client.post("/events", json=body),
            client.get("/health/ready"),
            client.post("/score", json={"user_id": "u", "candidates": [{"video_id": "v"}]}),
        ]
    log = (tmp_path / "service.log").read_text()

    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert "Redis does not answer" in log
    assert "hunter" not in log + "".join(answer.text for answer in answers)
