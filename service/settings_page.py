"""The settings as a person reads them: the page of the documentation, and what is set now."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from inspect import getdoc
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AliasChoices, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from service.masking import masked_url
from service.settings import Settings

_HEAD: Final = """\
# Configuration

Every setting of the service. Written by `make docs` from [service/settings.py](../service/settings.py): change it there.

A setting is a flag of `python -m service`, or an environment variable; the flag wins, and a variable that is set to nothing is
not set. A value that cannot be used ends the start with a line that names it. `python -m service settings` prints what is
set, with passwords masked; `python -m service doctor` tries what it leads to, such as a GPU: `CTR_DEVICE=cuda` where CUDA's
libraries are missing is found out by each worker as it starts, and several workers take up to a minute to give up.

Passwords belong into variables, not into flags: a list of processes shows flags to everybody. No log line, error or
listing shows the password of `CTR_REDIS_URL`; that holds from four letters on.

| variable | flag | default | range | meaning |
|---|---|---|---|---|
"""
_TAIL: Final = """
## Variables of others

| variable | meaning |
|---|---|
| `REDIS_URL` | taken where `CTR_REDIS_URL` is not set |
| `PROMETHEUS_MULTIPROC_DIR` | set by the service itself for several workers, to a directory under `CTR_DATA_DIR` |
| `ORT_DISABLE_TELEMETRY` | `1` keeps ONNX Runtime from sending facts about the machine; set in the images |
| `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, ... | where traces go, by OTLP over HTTP, and what goes with them |
| `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which requests are traced; by default all whose caller does not say otherwise |
| `OTEL_TRACES_EXPORTER` | `otlp`, `console` or `none` |
| `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | what the traces are called; `thacil-ctr` by default |
| `OTEL_SDK_DISABLED` | `true`: no traces, whatever `CTR_TRACES` says |
"""
_BOUNDS: Final[dict[type, str]] = {Ge: "ge", Gt: "gt", Le: "le"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: of the field.
        meaning: what it does.
        default: as it is shown; empty where a value must be given.
        values: which values it takes, as it is shown.
        flag: of the command line.
        variable: of the environment.
        switch: whether the flag stands alone.
    """

    name: str
    meaning: str
    default: str
    values: str
    flag: str
    variable: str
    switch: bool


def settings() -> list[Setting]:
    """Describe all settings, in their order."""
    meanings = dict(_meanings())
    return [
        Setting(
            name=name,
            meaning=meanings[name],
            default=_default(field),
            values=_values(field),
            flag=f"--{name.replace('_', '-')}",
            variable=f"CTR_{name.upper()}",
            switch=field.annotation is bool,
        )
        for name, field in Settings.model_fields.items()
    ]


def page() -> str:
    """Write the page of the documentation."""
    rows = [
        f"| `{s.variable}` | `{s.flag}` | {_code(s.default)} | {s.values} | {s.meaning} |"
        for s in settings()
    ]
    return _HEAD + "\n".join(rows) + "\n" + _TAIL


def listing(given: Settings, *, without: Container[str] = ()) -> str:
    """Write what is set now, as lines of an environment file; secrets are masked.

    Args:
        given: what is set.
        without: fields that are shown as not set.
    """
    lines = []
    for setting in settings():
        value = None if setting.name in without else getattr(given, setting.name)
        if isinstance(value, SecretStr):
            value = masked_url(value.get_secret_value())
        shown = "" if value is None else str(value).lower() if setting.switch else str(value)
        lines.append(f"{setting.variable}={shown}")
    return "\n".join(lines) + "\n"


def faults_of(error: ValidationError) -> list[str]:
    """Say which flag or variable has no good value, and why; never the value."""
    faults = []
    for fault in error.errors(include_input=False):
        name = str(fault["loc"][0])
        name = "redis_url" if name.endswith("REDIS_URL") else name
        faults.append(f"--{name.replace('_', '-')} (CTR_{name.upper()}): {fault['msg']}")
    return faults


def _meanings() -> Iterator[tuple[str, str]]:
    """Read the attributes in the docstring of the settings: a name, a colon, what it does."""
    _, _, text = (getdoc(Settings) or "").partition("Attributes:\n")
    name, meaning = "", ""
    for line in text.splitlines():
        if line.startswith("        "):
            meaning += " " + line.strip()
            continue
        if name:
            yield name, _sentence(meaning)
        name, _, meaning = line.strip().partition(": ")
    if name:
        yield name, _sentence(meaning)


def _sentence(text: str) -> str:
    return text.strip().rstrip(".").replace("``", "`").replace("|", "or")


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown" in extra:
        return str(extra["shown"])
    if field.is_required():
        return ""
    value = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return "true, false"
    bounds: dict[str, Any] = {}
    for rule in field.metadata:
        if type(rule) in _BOUNDS:
            name = _BOUNDS[type(rule)]
            bounds[name] = getattr(rule, name)
    words = {"ge": "from {}", "gt": "over {}", "le": "to {}"}
    found = " ".join(words[name].format(bounds[name]) for name in words if name in bounds)
    return found or ("an address" if isinstance(field.validation_alias, AliasChoices) else "")


def _code(text: str) -> str:
    return f"`{text}`" if text and " " not in text else text
