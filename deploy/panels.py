"""What operators watch: the panels, once, for Grafana and for Prometheus' consoles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """One expression of a panel.

    Attributes:
        legend: what a series is called; ``{{label}}`` stands for a label's value.
        expr: in Prometheus' language.
        rare: returns nothing while all is well.
    """

    legend: str
    expr: str
    rare: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph.

    Attributes:
        title: what it shows.
        unit: of its values, one of Grafana's.
        meaning: what a value says, and what it means when it moves.
        lines: what is drawn.
        kind: ``lines`` over time, or ``buckets``: of one histogram, whose series have the label
            ``le`` and count what is at most so much.
    """

    title: str
    unit: Literal["reqps", "s", "percentunit", "short"]
    meaning: str
    lines: tuple[Line, ...]
    kind: Literal["lines", "buckets"] = "lines"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels; ``name`` is its file and its address."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def _quantiles(
    metric: str, selector: str = "", *, shares: tuple[float, ...] = (0.5, 0.99)
) -> tuple[Line, ...]:
    buckets = f"sum by (le) (rate({metric}_bucket{selector}[5m]))"
    return tuple(
        Line(f"p{share * 100:.0f}", f"histogram_quantile({share}, {buckets})") for share in shares
    )


SERVICE = Dashboard(
    "service",
    "Click-through: service",
    (
        Panel(
            "Requests",
            "reqps",
            "Answers per second by route.",
            (Line("{{route}}", "sum by (route) (rate(ctr_requests_total[5m]))"),),
        ),
        Panel(
            "Failures",
            "percentunit",
            "Share of rankings and of calls with events that failed: 5xx, or 429 of a full service. "
            "The objective is 0.1 %.",
            (Line("{{route}}", "route:ctr_requests_failed:ratio_rate5m"),),
        ),
        Panel(
            "Errors by status",
            "reqps",
            "Answers per second that were errors, the caller's (4xx) included.",
            (
                Line(
                    "{{route}} {{status}}",
                    'sum by (route, status) (rate(ctr_requests_total{status!~"2.."}[5m]))',
                    rare=True,
                ),
            ),
        ),
        Panel(
            "Latency of a ranking",
            "s",
            "From the first byte of the request to the last of the answer, inside the service.",
            _quantiles("ctr_request_seconds", '{route="/score"}'),
        ),
        Panel(
            "Latency by stage",
            "s",
            "state: asking Redis. user: the profile. model: encoding videos and scoring. "
            "append: writing events. profile: computing profiles.",
            (Line("{{stage}} p99", "stage:ctr_stage_seconds:p99_rate5m"),),
        ),
        Panel(
            "Candidates",
            "short",
            "Candidates per second that callers ask to be ranked: what the processors work on.",
            (Line("candidates", "sum(rate(ctr_candidates_total[5m]))"),),
        ),
        Panel(
            "Queue: candidates in flight",
            "short",
            "Candidates being ranked or waiting, a call counted as 200 more. Near the limit "
            "(20,000 a worker): calls get 429.",
            (Line("{{instance}}", "sum by (instance) (ctr_candidates_in_flight)"),),
        ),
        Panel(
            "Batch sizes: rankings per run",
            "short",
            "Rankings that one run of the model scored together. Rising: they wait for a thread.",
            (
                Line(
                    "mean",
                    "sum(rate(ctr_jobs_per_run_sum[5m])) / sum(rate(ctr_jobs_per_run_count[5m]))",
                ),
                # Between whole numbers lies nothing.
                *(
                    Line(line.legend, f"ceil({line.expr})")
                    for line in _quantiles("ctr_jobs_per_run", shares=(0.99,))
                ),
            ),
        ),
        Panel(
            "Cache hits",
            "percentunit",
            "Share of the candidates whose encoded video was in memory, and of the rankings whose "
            "profile was stored and fresh. Videos fall after a start or a promotion; for long: the "
            "memory for rows is too small. Profiles fall: the background is behind.",
            (
                Line(
                    "videos",
                    'sum(rate(ctr_row_cache_total{outcome="hit"}[5m])) '
                    "/ sum(rate(ctr_row_cache_total[5m]))",
                ),
                Line(
                    "profiles",
                    'sum(rate(ctr_profile_cache_total{outcome="hit"}[5m])) / '
                    'sum(rate(ctr_profile_cache_total{outcome=~"hit|computed|joined"}[5m]))',
                ),
            ),
        ),
        Panel(
            "Rankings past their deadline",
            "reqps",
            "Rankings per second that were dropped because their caller no longer waits.",
            (Line("expired", "sum(rate(ctr_expired_total[5m]))"),),
        ),
        Panel(
            "Degraded rankings",
            "reqps",
            "Rankings per second without Redis: last_profile from memory, no_history as for a new "
            "user.",
            (Line("{{level}}", "sum by (level) (rate(ctr_degraded_total[5m]))", rare=True),),
        ),
        Panel(
            "Workers",
            "short",
            "Processes that answer. Fewer than were started: one does not come up.",
            (Line("{{instance}}", "sum by (instance) (ctr_workers)"),),
        ),
    ),
)

STATE = Dashboard(
    "state",
    "Click-through: state",
    (
        Panel(
            "Events by verdict",
            "reqps",
            "accepted and late changed a history; duplicate, too_old and deleted changed nothing; "
            "future and invalid were turned away.",
            (Line("{{verdict}}", "sum by (verdict) (rate(ctr_events_total[5m]))"),),
        ),
        Panel(
            "Profiles by origin",
            "reqps",
            "hit: stored and fresh. empty: no clicks yet. computed: on the spot. background: ahead "
            "of time. dropped: the queue was full or too slow.",
            (Line("{{outcome}}", "sum by (outcome) (rate(ctr_profile_cache_total[5m]))"),),
        ),
        Panel(
            "Profile lag",
            "s",
            "From the acknowledged click to the stored profile, in the background. Over a second: "
            "rankings compute profiles themselves and are slower.",
            _quantiles("ctr_profile_lag_seconds"),
        ),
        Panel(
            "Users in the background queue",
            "short",
            "Users whose profile is to be computed. Growing: too little processor.",
            (Line("{{instance}}", "sum by (instance) (ctr_profiles_waiting)"),),
        ),
        Panel(
            "Redis: time of its answers",
            "s",
            "What rankings (state) and calls with events (append) wait for Redis; 99 % wait less.",
            (Line("{{stage}} p99", 'stage:ctr_stage_seconds:p99_rate5m{stage=~"state|append"}'),),
        ),
        Panel(
            "Redis: workers that do not reach it",
            "short",
            "Workers whose circuit is open: clicks are refused, rankings degraded.",
            (Line("{{instance}}", "sum by (instance) (ctr_redis_circuit_open)"),),
        ),
        Panel(
            "Redis: retries and failures",
            "reqps",
            "Calls that were tried again, and calls that were given up, by error.",
            (
                Line("tried again", "sum(rate(ctr_redis_retries_total[5m]))"),
                Line(
                    "given up: {{error}}",
                    "sum by (error) (rate(ctr_redis_failures_total[5m]))",
                    rare=True,
                ),
            ),
        ),
    ),
)

MODEL = Dashboard(
    "model",
    "Click-through: model",
    (
        Panel(
            "Version that answers",
            "short",
            "Containers by version. Two for longer than a promotion takes: one of them refused it.",
            (Line("{{name}} {{version}}", "count by (name, version) (ctr_model_info == 1)"),),
        ),
        Panel(
            "Age of the version",
            "s",
            "Since it was published. Clicks change with the days: train again before it is old.",
            (
                Line(
                    "{{name}} {{version}}",
                    "max by (name, version) (time() - ctr_model_created_timestamp_seconds "
                    "and on (instance, name, version) ctr_model_info == 1)",
                ),
            ),
        ),
        Panel(
            "Refused versions",
            "short",
            "Promoted versions that could not be opened within the last hour. The log says why.",
            (Line("{{instance}}", "sum by (instance) (increase(ctr_model_failures_total[1h]))"),),
        ),
        Panel(
            "Mean score",
            "percentunit",
            "Mean probability of a click, of five minutes, of an hour and of a day. Apart for long: "
            "other candidates, other features, or a model that does not fit them.",
            (
                Line("5 minutes", "sum(rate(ctr_score_sum[5m])) / sum(rate(ctr_score_count[5m]))"),
                Line("an hour", "ctr_score:mean_rate1h"),
                Line("a day", "ctr_score:mean_rate1d"),
            ),
        ),
        Panel(
            "Spread of the scores",
            "percentunit",
            "A tenth, half and nine tenths of the scores are below these lines. All close together: "
            "the model no longer tells candidates apart.",
            _quantiles("ctr_score", shares=(0.1, 0.5, 0.9)),
        ),
        Panel(
            "Distribution of the scores",
            "short",
            "Scores of the last hour by probability of a click.",
            (Line("{{le}}", "sum by (le) (increase(ctr_score_bucket[1h]))"),),
            kind="buckets",
        ),
        Panel(
            "Model runs of rankings",
            "s",
            "Encoding videos and scoring candidates, per ranking.",
            _quantiles("ctr_stage_seconds", '{stage="model"}'),
        ),
    ),
)

DASHBOARDS = (SERVICE, STATE, MODEL)
