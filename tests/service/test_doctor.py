"""The doctor finds what is wrong with real parts, and says what to do about it."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from model_store import CompiledPart, ModelStore
from service import doctor, steps
from service.doctor import NEEDED, WORKER_MB, examine, memory_limit
from service.embedded_redis import embedded_redis
from service.findings import Finding
from service.redis_checks import check_server
from service.settings import Settings
from service.state.inspection import Server, inspect

from .conftest import ROOT, tiny_draft


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A Redis of this test's own: it is spoilt."""
    with embedded_redis(tmp_path / "redis") as url:
        yield url


def found(settings: Settings) -> dict[str, Finding]:
    findings = list(examine(settings))
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert bool(finding.fix) == (finding.verdict != "PASS")
    return {finding.name: finding for finding in findings}


def settings(store: ModelStore, tmp_path: Path, url: str | None, **more: object) -> Settings:
    given = {"model_store": store.root, "data_dir": tmp_path / "data", "redis_url": url}
    return Settings(**{**given, **more})  # type: ignore[arg-type]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "doctor", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_service_that_will_run_passes(store: ModelStore, tmp_path: Path, url: str) -> None:
    """Status 0, a line for each check, and what was seen of version, model and Redis."""
    with Redis.from_url(url) as client:
        client.config_set("maxmemory", "100mb")
    done = run("--model-store", str(store.root), "--redis-url", url, "--data-dir", str(tmp_path))

    assert done.returncode == 0, done.stdout
    assert f"PASS  model store         {store.current()} opens on cpu" in done.stdout
    names = (
        "versions",
        "compiled parts",
        "device",
        "redis",
        "redis version",
        "redis writes",
        "clock",
    )
    for name in names:
        assert re.search(rf"^PASS  {name} ", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"\n1\d PASS, \d WARN, 0 FAIL\n$", done.stdout)


def test_the_embedded_redis_is_tried_where_no_address_is_given(
    store: ModelStore, tmp_path: Path
) -> None:
    """It is started for the check and stopped again; one that runs is asked."""
    chosen = settings(store, tmp_path, None)
    assert "started" in found(chosen)["redis"].seen
    with embedded_redis(tmp_path / "data"):
        seen = found(chosen)["redis"].seen
    assert "of a running service" in seen
    (tmp_path / "data" / "redis.lock").unlink()
    (tmp_path / "data" / "redis.lock").mkdir()
    assert found(chosen)["redis"].verdict == "FAIL"


def test_a_redis_that_is_away_fails(store: ModelStore, tmp_path: Path) -> None:
    """With the address, the reason and status 1."""
    done = run("--model-store", str(store.root), "--redis-url", "redis://127.0.0.1:1")

    assert done.returncode == 1
    assert re.search(r"FAIL  redis +redis://127.0.0.1:1: Redis does not answer", done.stdout)
    assert "is the password right" in done.stdout


def test_a_wrong_password_fails(store: ModelStore, tmp_path: Path, url: str) -> None:
    """Redis' own words, without the password."""
    with Redis.from_url(url) as client:
        client.config_set("requirepass", "right-one")
        client.auth("right-one")
        finding = found(settings(store, tmp_path, url))["redis"]
    assert finding.verdict == "FAIL"
    assert "uthentication" in finding.seen


@pytest.mark.parametrize(
    ("directives", "name", "verdict", "words"),
    [
        ({"appendonly": "no"}, "redis persistence", "WARN", "loses clicks"),
        ({"appendfsync": "no"}, "redis appendfsync", "WARN", "half a minute"),
        ({"appendfsync": "always"}, "redis appendfsync", "PASS", "always"),
        ({"maxmemory-policy": "allkeys-lru"}, "redis policy", "FAIL", "drops histories"),
        ({"maxmemory-policy": "volatile-ttl"}, "redis policy", "FAIL", "drops histories"),
        ({"maxmemory": "0"}, "redis memory", "WARN", "no maxmemory"),
        ({"maxmemory": "1mb"}, "redis writes", "FAIL", "refused"),
        ({"list-max-ziplist-size": "128"}, "redis encoding", "WARN", "128"),
    ],
)
def test_a_redis_that_would_lose_or_refuse_is_told(
    store: ModelStore,
    tmp_path: Path,
    url: str,
    directives: dict[str, str],
    name: str,
    verdict: str,
    words: str,
) -> None:
    """Each directive that matters, on a real server that is set so."""
    with Redis.from_url(url) as client:
        if directives.get("maxmemory") == "1mb":
            client.set("filler", b"x" * 2**21)
        for directive, value in directives.items():
            client.config_set(directive, value)
    finding = found(settings(store, tmp_path, url))[name]

    assert finding.verdict == verdict
    assert words in finding.seen


def test_a_replica_fails(store: ModelStore, tmp_path: Path, url: str) -> None:
    """It takes no writes."""
    with Redis.from_url(url) as client:
        client.replicaof("127.0.0.1", "1")
    finding = found(settings(store, tmp_path, url))["redis writes"]

    assert finding.verdict == "FAIL"
    assert "master" in finding.fix


def test_a_redis_that_does_not_tell_is_a_warning(
    store: ModelStore, tmp_path: Path, url: str
) -> None:
    """Managed ones forbid CONFIG: the provider must be asked."""
    with Redis.from_url(url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-config"])
        findings = found(settings(store, tmp_path, url))
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+config"])

    for name in ("redis appendfsync", "redis encoding"):
        assert findings[name].verdict == "WARN"
        assert "provider" in findings[name].fix


def test_what_a_healthy_server_cannot_show_is_judged_too(url: str) -> None:
    """An old version, a failed write to disk, a slow line, a clock that is off: by limits."""
    [server] = asyncio.run(inspect(url, timeout_seconds=1.0))

    def judged(changed: Server) -> dict[str, str]:
        findings = check_server(changed, timeout_seconds=1.0, tolerance_seconds=60.0)
        return {finding.name: finding.verdict for finding in findings}

    def told(**info: object) -> Server:
        return replace(server, info={**server.info, **info})

    assert judged(told(redis_version="6.0.16"))["redis version"] == "FAIL"
    assert judged(told(redis_version="8.0.1"))["redis version"] == "PASS"
    assert judged(told(aof_last_write_status="err"))["redis persistence"] == "FAIL"
    assert judged(told(aof_last_bgrewrite_status="err"))["redis persistence"] == "WARN"
    assert judged(told(used_memory=95, maxmemory=100))["redis memory"] == "WARN"
    assert judged(replace(server, ping_ms=5.0))["redis latency"] == "WARN"
    assert judged(replace(server, worst_ping_ms=900.0))["redis latency"] == "FAIL"
    assert judged(replace(server, clock_ahead_ms=-5_000.0))["clock"] == "WARN"
    assert judged(replace(server, clock_ahead_ms=70_000.0))["clock"] == "FAIL"


def test_a_store_without_a_version_fails_unless_the_service_waits(
    tmp_path: Path, redis_url: str
) -> None:
    """Nothing promoted: FAIL; with --wait-for-model a warning."""
    empty = ModelStore(tmp_path / "store")
    finding = found(settings(empty, tmp_path, redis_url))["model store"]
    assert finding.verdict == "FAIL"
    assert "promote" in finding.fix
    waiting = settings(empty, tmp_path, redis_url, wait_for_model=True)
    assert found(waiting)["model store"].verdict == "WARN"


def test_a_damaged_version_fails(tmp_path: Path, redis_url: str) -> None:
    """A graph that is not the published one is named."""
    store = ModelStore(tmp_path / "store")
    version = store.publish(tiny_draft())
    store.promote(version)
    graph = store.root / "versions" / version / "score_head.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    finding = found(settings(store, tmp_path, redis_url))["model store"]

    assert finding.verdict == "FAIL"
    assert "score_head.onnx has SHA-256" in finding.seen


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_fails(store: ModelStore, tmp_path: Path, redis_url: str) -> None:
    """CUDA is asked for: either the build lacks it, or the version does not open on it."""
    findings = found(settings(store, tmp_path, redis_url, device="cuda"))

    assert "FAIL" in (findings["device"].verdict, findings["model store"].verdict)
    assert findings["redis"].verdict == "PASS"


def test_few_files_fail(store: ModelStore, tmp_path: Path, redis_url: str) -> None:
    """A limit below 256 fails, one below 1,024 is a warning."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, verdict in ((200, "FAIL"), (512, "WARN"), (1_024, "PASS")):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            finding = found(settings(store, tmp_path, redis_url))["open files"]
            assert finding.verdict == verdict
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_metrics_need_a_place(store: ModelStore, tmp_path: Path, redis_url: str) -> None:
    """Several workers write their metrics: where a file is in the way they cannot."""
    (tmp_path / "file").write_text("")
    chosen = settings(store, tmp_path, redis_url, workers=2, data_dir=tmp_path / "file" / "x")
    finding = found(chosen)["metrics directory"]

    assert finding.verdict == "FAIL"
    assert "CTR_DATA_DIR" in finding.fix
    assert found(settings(store, tmp_path, redis_url, workers=2))[finding.name].verdict == "PASS"


def test_too_large_caches_are_told(store: ModelStore, tmp_path: Path, redis_url: str) -> None:
    """More than the machine has, of all workers."""
    chosen = settings(store, tmp_path, redis_url, row_cache_mb=2**30)

    assert found(chosen)["memory"].verdict == "WARN"


def test_caches_that_leave_no_room_for_the_workers_are_told(
    store: ModelStore, tmp_path: Path, redis_url: str
) -> None:
    """Two caches a worker, and what a worker takes besides, must fit into the memory."""
    limit = memory_limit() // 2**20
    most = (limit - 2 * WORKER_MB) // 4
    full = settings(store, tmp_path, redis_url, workers=2, row_cache_mb=limit // 4)
    fits = settings(store, tmp_path, redis_url, workers=2, row_cache_mb=most)

    assert found(full)["memory"].verdict == "WARN"
    assert found(fits)["memory"].verdict == "PASS"


def test_an_old_package_fails(
    store: ModelStore, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package and the version that is needed are named; as is one that is missing."""
    monkeypatch.setitem(NEEDED, "redis", "999.1")
    monkeypatch.setitem(NEEDED, "no-such-package", "1")
    finding = found(settings(store, tmp_path, redis_url))["versions"]

    assert finding.verdict == "FAIL"
    assert "at least 999.1 is needed" in finding.seen
    assert "no-such-package is missing" in finding.seen


def test_a_part_that_was_not_built_is_told(
    store: ModelStore, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything runs without it, slower; what to do is said."""
    monkeypatch.setattr(steps, "COMPILED", None)
    monkeypatch.setattr(steps, "WHY_NOT", "it went missing")
    monkeypatch.setattr(doctor, "COMPILED_HEAD", CompiledPart(None, (), "and so did this"))
    finding = found(settings(store, tmp_path, redis_url))["compiled parts"]

    assert finding.verdict == "WARN"
    assert "(it went missing)" in finding.seen
    assert "(and so did this)" in finding.seen
    assert "g++" in finding.fix


def test_traces_need_their_extra(store: ModelStore, tmp_path: Path, redis_url: str) -> None:
    """Checked only where traces are wanted."""
    assert "traces" not in found(settings(store, tmp_path, redis_url))
    hide = "import sys; sys.modules['opentelemetry'] = None; import service.__main__ as m; "
    words = ["doctor", "--traces", "--model-store", str(store.root), "--redis-url", redis_url]
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}sys.exit(m.main({words!r}))"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "thacil-ctr[otel]" in done.stdout


def test_traces_need_an_exporter_that_there_is(
    store: ModelStore, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not there fails, with those that are; none is sent where none are wanted."""
    pytest.importorskip("opentelemetry.sdk", reason="pip install 'thacil-ctr[otel]'")
    chosen = settings(store, tmp_path, redis_url, traces=True)
    for exporter, verdict in (("zipkin", "FAIL"), ("none", "PASS"), ("otlp", "PASS")):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
        finding = found(chosen)["traces"]
        assert finding.verdict == verdict
        assert ("sent to" in finding.seen) == (exporter == "otlp")


def test_the_doctor_knows_what_the_project_needs() -> None:
    """Its least versions are those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["service"]
    least = {}
    for line in lines:
        match = re.match(r"(?P<name>[\w-]+)(\[.*\])?>=(?P<least>[\d.]+)(?P<some>;)?", line)
        assert match is not None, line
        # What only some machines need is not asked for; ONNX Runtime has a check of its own.
        if not match["some"]:
            least[match["name"]] = match["least"]

    assert least == NEEDED
    assert "onnxruntime-gpu>=1.24" in " ".join(lines)
