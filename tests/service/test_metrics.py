"""Metrics: all documented as they are, true of several workers, with labels that cannot grow."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.metric_files import cleared

from .conftest import ROOT

MODES = {"livesum": "gauge, sum of the living", "livemax": "gauge, most of the living"}


@dataclass(frozen=True)
class Documented:
    """A row of docs/metrics.md."""

    kind: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    meaning: str
    advice: str


def documented() -> dict[str, Documented]:
    text = (ROOT / "docs" / "metrics.md").read_text()
    sets = {
        name: tuple(map(float, numbers.replace("\n", " ").split(", ")))
        for name, numbers in re.findall(r"\*\*(\w)\*\* are [^:]+: ([\d., \n]+\d)\.?", text)
    }
    found = {}
    for line in text.splitlines():
        if not line.startswith("| `ctr_"):
            continue
        name, kind, labels, buckets, meaning, advice = (c.strip() for c in line[2:-1].split("| "))
        assert name not in found
        found[name.strip("`")] = Documented(
            kind, tuple(re.findall(r"`(\w+)`", labels)), sets.get(buckets, ()), meaning, advice
        )
    return found


DOCUMENTED = documented()


def defined() -> dict[str, Counter | Gauge | Histogram]:
    kinds = (Counter, Gauge, Histogram)
    found = [metric for metric in vars(metrics).values() if isinstance(metric, kinds)]
    return {f"{m._name}_total" if isinstance(m, Counter) else m._name: m for m in found}


def test_every_metric_is_documented_as_it_is() -> None:
    """Name, kind, labels, buckets and mode; with a meaning and what to do. No other is named."""
    assert DOCUMENTED.keys() == defined().keys()
    for name, metric in defined().items():
        row = DOCUMENTED[name]
        assert row.labels == tuple(metric._labelnames), name
        assert len(row.meaning) > 5, name
        assert len(row.advice) > 5, name
        if isinstance(metric, Gauge):
            assert row.kind == MODES[metric._multiprocess_mode], name
        else:
            assert row.kind == metric._type, name
        if isinstance(metric, Histogram):
            assert row.buckets == tuple(metric._kwargs["buckets"]), name


def test_durations_begin_below_a_millisecond() -> None:
    """So that a ranking of a millisecond is told from one of half."""
    for name, metric in defined().items():
        if name.endswith("_seconds") and not name.endswith("_timestamp_seconds"):
            assert isinstance(metric, Histogram)
            assert sum(bound < 0.001 for bound in DOCUMENTED[name].buckets) >= 3


def shown(client: httpx.Client) -> dict[str, Metric]:
    answer = client.get("/metrics").raise_for_status()
    families = text_string_to_metric_families(answer.text)
    return {f"{f.name}_total" if f.type == "counter" else f.name: f for f in families}


def test_what_a_service_shows_is_what_is_documented(client: httpx.Client) -> None:
    """All names, kinds, labels and buckets of two workers; none beside them."""
    candidates = [{"video_id": "m", "category": 1, "features": [1, 2, 3]}]
    client.post("/score", json={"user_id": "m", "candidates": candidates}).raise_for_status()
    event = {"user_id": "m", "video_id": "m", "timestamp": 1_720_000_000_000}
    client.post("/events", json={"events": [event]}).raise_for_status()
    found = shown(client)

    assert {"ctr_requests_total", "ctr_request_seconds", "ctr_workers"} <= found.keys()
    for name, family in found.items():
        row = DOCUMENTED[name]
        assert family.type == row.kind.partition(",")[0]
        bounds = defaultdict(list)
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "le"}
            assert tuple(sorted(labels)) == tuple(sorted(row.labels)), sample
            if sample.name.endswith("_bucket"):
                bounds[tuple(labels.values())].append(float(sample.labels["le"]))
        for each in bounds.values():
            assert each == [*row.buckets, float("inf")]


def test_no_label_grows_with_what_is_asked(client: httpx.Client) -> None:
    """Whatever paths, ids and methods callers invent, routes are those of the API."""
    for i in range(30):
        client.get(f"/users/grows-{i}")
        client.get(f"/users/grows/{i}/deeper")
        client.get(f"/videos/grows-{i}")
        client.get(f"/grows/{i}")
        client.get(f"/docs/{i}?x={i}")
        client.request(f"GROW{i}", "/score")
        client.request("OPTIONS", f"/score/{i}")
    families = shown(client)
    api = set(client.get("/openapi.json").json()["paths"])
    allowed = {path.replace("}", ":id}") for path in api} | api
    allowed |= {"unmatched", "/openapi.json", "/docs", "/docs/oauth2-redirect"}

    for name in ("ctr_requests_total", "ctr_request_seconds"):
        routes = {sample.labels["route"] for sample in families[name].samples}
        assert routes <= allowed, routes - allowed
        assert "unmatched" in routes
    for family in families.values():
        for sample in family.samples:
            assert "grow" not in str(sample.labels).lower()


def write(path: Path, **values: float) -> None:
    file = MmapedDict(str(path))
    for key, value in values.items():
        file.write_value(key, value, 0.0)
    file.close()


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def read(path: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}


def test_what_ended_workers_counted_is_kept_in_one_file(tmp_path: Path) -> None:
    """Added up over any number of them; the files of the living are left alone."""
    for turn in range(3):
        ended = ended_process()
        write(tmp_path / f"counter_{ended}.db", a=1, b=turn)
        write(tmp_path / f"histogram_{ended}.db", c=0.5)
        write(tmp_path / f"gauge_livesum_{ended}.db", d=1)
        write(tmp_path / f"counter_{os.getpid()}.db", a=100)
        with cleared(tmp_path):
            names = {path.name for path in tmp_path.glob("*.db")}
        assert names == {f"counter_{os.getpid()}.db", "counter_ended.db", "histogram_ended.db"}

    assert read(tmp_path / "counter_ended.db") == {"a": 3, "b": 3}
    assert read(tmp_path / "histogram_ended.db") == {"c": 1.5}
    assert read(tmp_path / f"counter_{os.getpid()}.db") == {"a": 100}


@pytest.mark.parametrize("left", [b"", b"\x40\x00\x00\x00", b"\x40\x00\x00\x00" + b"\xff" * 96])
def test_a_file_that_was_cut_off_does_not_end_the_metrics(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read is told and removed; what others counted stays."""
    ended = ended_process()
    write(tmp_path / "counter_ended.db", a=2)
    (tmp_path / f"counter_{ended}.db").write_bytes(left)
    with caplog.at_level(logging.WARNING), cleared(tmp_path):
        assert read(tmp_path / "counter_ended.db") == {"a": 2}

    assert not (tmp_path / f"counter_{ended}.db").exists()
    assert str(ended) in caplog.text
