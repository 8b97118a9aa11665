#!/usr/bin/env bash
# Builds every image, runs the compose project as a newcomer would, and checks what it promises.
#
# Uses docker with its compose plugin, or podman, buildah and podman-compose where no docker engine
# answers. The project has its own name, volumes and ports; all but the images is removed at the end.
#
#   BUILD_ARGS        more arguments for every build: mirrors, certificates
#   TORCH_INDEX_URL   where torch comes from beside PyPI; empty: PyPI alone
#   STORAGE_ARGS      arguments of podman and buildah about storage
#   PODMAN_ARGS       further arguments of podman itself
#   PODMAN_RUN_ARGS   further arguments of podman run
#   LOAD_SECONDS      how long users come while something is restarted; default: 60
#   GPU=1             builds the GPU image, too: 3 GB
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export SERVICE_PORT="${SERVICE_PORT:-18000}" PROMETHEUS_PORT="${PROMETHEUS_PORT:-19090}"
export GRAFANA_PORT="${GRAFANA_PORT:-13000}"
TORCH_INDEX_URL="${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}"
SERVICE="http://127.0.0.1:$SERVICE_PORT"
PROMETHEUS="http://127.0.0.1:$PROMETHEUS_PORT"
PROJECT=thacil-ctr-verify
BEGAN=$SECONDS
read -ra build_args <<<"${BUILD_ARGS:-}"
read -ra storage_args <<<"${STORAGE_ARGS:-}"
read -ra podman_args <<<"${PODMAN_ARGS:-}"

say() { printf '[%4d s] %s\n' $((SECONDS - BEGAN)) "$*"; }
fail() {
    say "FAIL $*"
    compose logs --tail 20 service 2>&1 | tail -n 20 || true
    exit 1
}

if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
    ENGINE=docker
    engine() { docker "$@"; }
    build() { docker build "${build_args[@]}" "$@" .; }
    compose() { docker compose -p "$PROJECT" "$@"; }
    health() { test "$(engine inspect --format '{{.State.Health.Status}}' "$1")" = healthy; }
else
    ENGINE=podman
    engine() { podman "${storage_args[@]}" "${podman_args[@]}" "$@"; }
    # Health checks are no part of the OCI's format.
    build() { buildah "${storage_args[@]}" bud --format docker "${build_args[@]}" "$@" .; }
    compose() {
        podman-compose -p "$PROJECT" --in-pod false \
            --podman-args="${STORAGE_ARGS:-} ${PODMAN_ARGS:-}" \
            --podman-run-args="${PODMAN_RUN_ARGS:-}" "$@" 2> >(grep -v 'systemd connection' >&2)
    }
    health() { engine healthcheck run "$1" >/dev/null 2>&1; }
fi

clean_up() {
    say "tearing down"
    compose --profile demo down -v --remove-orphans >/dev/null 2>&1 || true
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what"
        sleep 0.5
    done
}

container() { engine ps --all --quiet --filter "name=${PROJECT}[-_]$1[-_]1" | head -n 1; }

# query EXPRESSION: the value of its first series in Prometheus
query() {
    curl -sS --get --data-urlencode "query=$1" "$PROMETHEUS/api/v1/query" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["result"][0]["value"][1])'
}
reads() { test "$(query "$1")" = "$2"; }

visited() { engine logs "$(container visitors)" 2>&1 | grep -q 'the best of'; }
ready() { curl -sSf "$SERVICE/health/ready"; }

check_images() {
    local image
    for image in thacil-ctr thacil-ctr-training; do
        [ "$(image_run "$image" python -c 'import os; print(os.getuid())')" = 10001 ] ||
            fail "$image does not run as user 10001"
        ! image_run "$image" sh -c 'command -v gcc cc g++' || fail "$image has a compiler"
    done
    ! image_run thacil-ctr python -c 'import torch' 2>/dev/null || fail "the service has torch"
    ! image_run thacil-ctr python -c 'import training' 2>/dev/null || fail "the service has a trainer"
    say "images run as user 10001, have no compiler; the service has neither torch nor trainer"
}

# Without a GPU: everything that the CUDA provider loads is there, but for the driver's library.
check_gpu_image() {
    local missing
    missing=$(image_run thacil-ctr:gpu sh -c 'ldd /opt/venv/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so |
        grep "not found" | cut -d" " -f1 | tr -d "\t" | sort -u')
    [ "$missing" = libcuda.so.1 ] || fail "the GPU image lacks: $missing"
    say "the GPU image has all of the CUDA provider's libraries; the driver brings $missing"
}

image_run() {
    local image=$1 command=$2 extra=()
    shift 2
    [ $ENGINE = docker ] || read -ra extra <<<"${PODMAN_RUN_ARGS:-}"
    engine run --rm --read-only --network none "${extra[@]}" --entrypoint "$command" "$image" "$@" \
        2> >(grep -v 'systemd connection' >&2)
}

check_calls() {
    python3 - "$SERVICE" <<'PYTHON'
import json, sys, time, urllib.request

def call(method, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[1] + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)

videos = [{"video_id": f"verify-{i}", "category": i, "features": [0.1 * i] * 64} for i in range(5)]
print("  PUT /videos  ", call("PUT", "/videos", {"videos": videos}))
now = time.time_ns() // 1_000_000
clicks = [{"user_id": "verify", "video_id": f"verify-{i}", "timestamp": now - i} for i in (1, 0)]
answer = call("POST", "/events", {"events": clicks})
print("  POST /events ", answer)
assert [r["status"] for r in answer["results"]] == ["accepted", "accepted"], answer
version = answer["users"]["verify"]["history_version"]
answer = call("POST", "/score", {
    "user_id": "verify", "candidates": [{"video_id": v["video_id"]} for v in videos],
    "top_k": 3, "min_history_version": version})
print("  POST /score  ", answer)
scores = [r["score"] for r in answer["results"]]
assert len(scores) == 3 and scores == sorted(scores, reverse=True), scores
assert all(0 < s < 1 for s in scores) and answer["history"]["length"] == 2, answer
PYTHON
}

# Every expression of every panel that shows something while all is well returns a number.
check_panels() {
    python3 - "$PROMETHEUS" <<'PYTHON'
import json, math, sys, urllib.parse, urllib.request

sys.path.insert(0, "deploy")
sys.dont_write_bytecode = True
from panels import DASHBOARDS

def shows(expr):
    address = f"{sys.argv[1]}/api/v1/query?" + urllib.parse.urlencode({"query": expr})
    with urllib.request.urlopen(address, timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return any(math.isfinite(float(series["value"][1])) for series in found)

lines = [(panel.title, line) for page in DASHBOARDS for panel in page.panels for line in panel.lines]
dark = sorted({title for title, line in lines if not line.rare and not shows(line.expr)})
print(f"{sum(not line.rare for _, line in lines)} expressions return numbers" if not dark else dark)
sys.exit(bool(dark))
PYTHON
}

# under_load WHAT FORBIDDEN COMMAND...: runs the command while users look and click. No request may
# be lost, and no attempt end in one of the forbidden ways.
under_load() {
    local what=$1 forbidden=$2 counts
    shift 2
    compose --profile demo run --rm --no-deps load --rate 25 --seconds "${LOAD_SECONDS:-60}" >"$LOG" 2>&1 &
    local load=$!
    wait_for 60 "the load did not start" grep -q '^{' "$LOG"
    "$@" >/dev/null 2>&1 || fail "$what"
    # On a slow machine the users may all be gone by then: that would prove nothing.
    kill -0 $load 2>/dev/null || fail "the load ended first, take a larger LOAD_SECONDS: $what"
    wait $load || { tail -n 5 "$LOG"; fail "requests were lost: $what"; }
    counts=$(grep '^{' "$LOG" | tail -n 1 | tr -d '\r')
    say "$what under 25 visits a second: $counts"
    python3 -c 'import json, sys; c = json.loads(sys.argv[1]); sys.exit(any(c[k] for k in sys.argv[2:]))' \
        "$counts" $forbidden || fail "one of $forbidden: $what"
}

LOG=$(mktemp) DUMP=$(mktemp)
trap 'clean_up; rm -f "$LOG" "$DUMP"' EXIT

# A function, so that the file may be edited while it runs.
verify() {
    say "building with $ENGINE"
    build --target service -t thacil-ctr >"$LOG" 2>&1 || { tail -n 20 "$LOG"; exit 1; }
    say "built: service"
    build --target training --build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL" -t thacil-ctr-training >"$LOG" 2>&1 ||
        { tail -n 20 "$LOG"; exit 1; }
    say "built: training"
    if [ -n "${GPU:-}" ]; then
        build --target service --build-arg 'ONNXRUNTIME=onnxruntime-gpu[cuda,cudnn]' -t thacil-ctr:gpu \
            >"$LOG" 2>&1 || { tail -n 20 "$LOG"; exit 1; }
        say "built: service for a GPU"
    fi
    say "sizes, and that of the base image in each"
    engine images --format '  {{.Repository}}:{{.Tag}}  {{.Size}}' | grep -E 'thacil-ctr|library/python|  python:'
    check_images
    [ -z "${GPU:-}" ] || check_gpu_image

    local services=(redis trainer service visitors prometheus)
    local image
    image=$(sed -n 's/^ *image: \(.*grafana.*\)/\1/p' docker-compose.yml)
    if engine image inspect "$image" >/dev/null 2>&1 || engine pull -q "$image" >/dev/null 2>&1; then
        services+=(grafana)
    else
        say "left out, no image to be had: $image"
    fi

    say "up: ${services[*]}"
    clean_up >/dev/null
    compose up -d "${services[@]}" >"$LOG" 2>&1 || { tail -n 20 "$LOG"; fail "compose up"; }
    wait_for 1200 "no model was trained" ready
    say "ready: $(ready)"
    wait_for 60 "the health check of the service" health "$(container service)"
    wait_for 60 "the health check of Redis" health "$(container redis)"
    wait_for 60 "the health check of Prometheus" health "$(container prometheus)"
    say "healthy: service, redis, prometheus"
    wait_for 120 "no visitor got a ranking" visited
    say "a ranked answer without another step, in the log of the visitors:"
    engine logs "$(container visitors)" 2>&1 | grep -A 5 'the best of'
    check_calls || fail "a call"
    say "a ranked answer to calls from outside"

    wait_for 60 "Prometheus does not see the service" reads 'up{job="ctr"}' 1
    wait_for 60 "Prometheus does not see two workers" reads ctr_workers 2
    wait_for 60 "Prometheus does not see rankings" reads 'sum(ctr_requests_total{route="/score",status="200"}) > bool 0' 1
    say "Prometheus scrapes both workers: ctr_workers $(query ctr_workers), rankings $(query 'sum(ctr_requests_total{route="/score",status="200"})')"
    wait_for 120 "a panel shows nothing: $(check_panels 2>&1 | tail -n 1)" check_panels
    say "dashboards: $(check_panels)"
    if [[ " ${services[*]} " == *" grafana "* ]]; then
        wait_for 60 "Grafana is not up" curl -sSf "http://127.0.0.1:$GRAFANA_PORT/api/health"
        say "Grafana is up"
    fi

    compose exec -T service python -m service dump - >"$DUMP" 2>"$LOG" || { cat "$LOG"; fail "dump"; }
    compose exec -T service python -m service restore - <"$DUMP" >"$LOG" 2>&1 || { cat "$LOG"; fail "restore"; }
    say "backup: $(stat -c %s "$DUMP") bytes, put back: $(grep -o 'service: .*' "$LOG" | tail -n 1)"

    # The socket stays open while one worker after the other is replaced; a container that restarts
    # is away for seconds, and resets connections that it had not taken yet.
    under_load "the workers replaced (SIGHUP)" "refused cut slow failed lost" engine kill --signal HUP "$(container service)"
    under_load "the container restarted" "failed lost" compose restart service
    wait_for 60 "not ready after the restart" ready
    compose stop service >/dev/null 2>&1
    say "stopped with exit status $(engine inspect --format '{{.State.ExitCode}}' "$(container service)")"
    say "PASS"
}

verify
