"""The metrics of a running stream, declared once: endpoint, export and ``docs/metrics.md`` all come from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from headrace.pipelines.streaming.telemetry_figures import Counts, Moment

UNITS = {
    "rows": "{row}",
    "records": "{record}",
    "rows per second": "{row}/s",
    "seconds": "s",
    "ratio": "1",
    "commits": "{commit}",
    "restarts": "{restart}",
    "alarms": "{alarm}",
    "0 or 1": "",
    "always 1": "",
}
"""Unit in words to the unit of OpenTelemetry (UCUM)."""


Samples = list[tuple[tuple[str, ...], float]]
"""(values of the labels, value) of each series; none while the value is not known."""


@dataclass(frozen=True)
class Alert:
    """An alert rule of Prometheus."""

    name: str
    expr: str
    hold: str
    """How long it must be true, as in ``for:``."""
    severity: Literal["critical", "warning", "info"]
    summary: str


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    """In Prometheus."""
    kind: Literal["counter", "gauge", "info"]
    unit: str
    """A key of ``UNITS``."""
    meaning: str
    read: Callable[[Moment], Samples]
    alert: Alert
    labels: tuple[str, ...] = ()

    @property
    def otel_name(self) -> str:
        """The name in OpenTelemetry, from which its translation to Prometheus makes ``name`` again."""
        name = self.name.removeprefix("headrace_").removesuffix("_total")
        if self.unit in ("seconds", "ratio"):
            name = name.removesuffix(f"_{self.unit}")
        return f"headrace.{name}"


def _one(value: float | None) -> Samples:
    return [] if value is None else [((), float(value))]


def _counts(read: Callable[[Counts], float | None]) -> Callable[[Moment], Samples]:
    """Returns a reader of the ledger that gives nothing before the first look."""
    return lambda moment: [] if moment.counts is None else _one(read(moment.counts))


METRICS = (
    Metric(
        "headrace_info",
        "info",
        "always 1",
        "The job, its source without secrets, and the version of headrace.",
        lambda moment: [(tuple(moment.info.values()), 1.0)],
        Alert(
            "HeadraceTwoLaunchers",
            "count by (source) (headrace_info) > 1",
            "10m",
            "warning",
            "Several launchers read {{ $labels.source }}; right only if each has an output of its own.",
        ),
        ("stream_job", "source", "version"),
    ),
    Metric(
        "headrace_up",
        "gauge",
        "0 or 1",
        "1 while the job runs or drains, 0 while it starts or restarts.",
        lambda moment: _one(moment.up),
        Alert(
            "HeadraceDown",
            "headrace_up == 0 or absent(headrace_up)",
            "5m",
            "critical",
            "The stream has not run for five minutes.",
        ),
    ),
    Metric(
        "headrace_ready",
        "gauge",
        "0 or 1",
        "What /readyz answers: 1 if the job commits or its source is idle.",
        lambda moment: _one(moment.ready),
        Alert(
            "HeadraceNotReady",
            "headrace_ready == 0",
            "15m",
            "warning",
            "The stream is not ready; /readyz says why.",
        ),
    ),
    Metric(
        "headrace_update_age_seconds",
        "gauge",
        "seconds",
        "How long ago the launcher last looked at the job; about half a second while it is well.",
        lambda moment: _one(moment.now - moment.updated),
        Alert(
            "HeadraceLauncherStuck",
            "headrace_update_age_seconds > 60",
            "5m",
            "critical",
            "The launcher does not watch its job any more; /healthz fails. Restart it: it goes on where it was.",
        ),
    ),
    Metric(
        "headrace_rows_in_total",
        "counter",
        "rows",
        "Records read from the source and committed to the ledger, over all jobs that wrote to the output.",
        _counts(lambda counts: counts.rows_in),
        Alert(
            "HeadraceReadsNothing",
            "rate(headrace_rows_in_total[10m]) == 0 and headrace_source_lag_records > 0",
            "5m",
            "critical",
            "Records wait in the source, and none is read.",
        ),
    ),
    Metric(
        "headrace_rows_accepted_total",
        "counter",
        "rows",
        "Rows in the committed files of the lake.",
        _counts(lambda counts: counts.accepted),
        Alert(
            "HeadraceAcceptsNothing",
            "rate(headrace_rows_accepted_total[10m]) == 0 and rate(headrace_rows_in_total[10m]) > 0",
            "10m",
            "critical",
            "Every row is rejected; the producer or the schema has changed.",
        ),
    ),
    Metric(
        "headrace_rows_rejected_total",
        "counter",
        "rows",
        "Rows in the committed files of the quarantine.",
        lambda moment: (
            [(key, float(n)) for key, n in sorted(moment.counts.rejected.items())] if moment.counts else []
        ),
        Alert(
            "HeadracePoison",
            'increase(headrace_rows_rejected_total{reason="poison"}[15m]) > 0 or (headrace_rows_rejected_total{reason="poison"} '
            'unless headrace_rows_rejected_total{reason="poison"} offset 15m and on (instance, job) headrace_up offset 15m)',
            "0m",
            "critical",
            "Stage {{ $labels.stage }} failed on events; they are in the quarantine, and it is a bug.",
        ),
        ("stage", "reason"),
    ),
    Metric(
        "headrace_rejected_ratio",
        "gauge",
        "ratio",
        "Share of the rows committed in the last minute that was rejected; absent if none was committed.",
        lambda moment: _one(moment.rejected_ratio),
        Alert(
            "HeadraceRejectsMany",
            "headrace_rejected_ratio > 0.05",
            "10m",
            "warning",
            "{{ $value | humanizePercentage }} of the rows are rejected; headrace_rows_rejected_total says why.",
        ),
    ),
    Metric(
        "headrace_rows_late_total",
        "counter",
        "rows",
        "Partial rows (one for each window and group of a batch) that came too late for a window table; they are kept in OUT/late, "
        "their events are in the lake.",
        lambda moment: (
            [((table,), float(n)) for table, n in sorted(moment.counts.late.items())] if moment.counts else []
        ),
        Alert(
            "HeadraceLate",
            "rate(headrace_rows_late_total[15m]) > 1",
            "15m",
            "warning",
            "Rows come too late for {{ $labels.table }}; raise allowed_lateness_seconds.",
        ),
        ("table",),
    ),
    Metric(
        "headrace_rows_per_second",
        "gauge",
        "rows per second",
        "Throughput over the last commits; absent before two of them. rate(headrace_rows_in_total[5m]) is the same, smoother.",
        lambda moment: _one(moment.rows_per_second),
        Alert(
            "HeadraceSlow",
            "headrace_rows_per_second < 0.5 * avg_over_time(headrace_rows_per_second[1d])",
            "30m",
            "info",
            "Throughput is less than half of the day's mean.",
        ),
    ),
    Metric(
        "headrace_source_lag_records",
        "gauge",
        "records",
        "Records that waited in the source at the last committed polls (bytes for a folder of files); absent if not known.",
        _counts(lambda counts: counts.behind),
        Alert(
            "HeadraceLagGrows",
            "headrace_source_lag_records > 0 and deriv(headrace_source_lag_records[15m]) > 0",
            "15m",
            "warning",
            "The source fills faster than the stream reads.",
        ),
    ),
    Metric(
        "headrace_rows_in_flight",
        "gauge",
        "rows",
        "Rows of committed polls that are neither accepted nor rejected yet.",
        _counts(lambda counts: counts.in_flight),
        Alert(
            "HeadraceRowsStuck",
            "min_over_time(headrace_rows_in_flight[30m]) > 0 and rate(headrace_rows_in_total[30m]) == 0",
            "5m",
            "critical",
            "Rows were read half an hour ago and have arrived nowhere.",
        ),
    ),
    Metric(
        "headrace_watermark_delay_seconds",
        "gauge",
        "seconds",
        "How far the event-time watermark is behind the clock; negative if events are ahead of it; absent before it is known.",
        lambda moment: _one(moment.watermark_delay),
        Alert(
            "HeadraceWatermarkBehind",
            "headrace_watermark_delay_seconds > 900 and headrace_source_lag_records > 0",
            "10m",
            "warning",
            "Windows are a quarter of an hour behind.",
        ),
    ),
    Metric(
        "headrace_commits_total",
        "counter",
        "commits",
        "Rows of the ledger: commits, and rollbacks before a new job, over all jobs that wrote to the output.",
        _counts(lambda counts: counts.commits),
        Alert(
            "HeadraceLagWithoutCommits",
            "rate(headrace_commits_total[10m]) == 0 and headrace_source_lag_records > 0",
            "5m",
            "critical",
            "Records wait in the source, and nothing is committed.",
        ),
    ),
    Metric(
        "headrace_commit_age_seconds",
        "gauge",
        "seconds",
        "Time since the last commit; absent before the first.",
        lambda moment: _one(moment.commit_age),
        Alert(
            "HeadraceCommitsNothing",
            "headrace_commit_age_seconds > 300",
            "5m",
            "critical",
            "Nothing has been committed for five minutes: checkpoints fail, or the disk is full.",
        ),
    ),
    Metric(
        "headrace_commit_latency_seconds",
        "gauge",
        "seconds",
        "From an event's time to its row in the lake, at most, at the last commit that the launcher saw: its time less its "
        "watermark, which includes watermark_delay_seconds. quantile_over_time(0.95, …[10m]) is its p95.",
        lambda moment: _one(moment.commit_latency),
        Alert(
            "HeadraceLatency",
            "quantile_over_time(0.95, headrace_commit_latency_seconds[10m]) > 60 and headrace_source_lag_records > 0",
            "10m",
            "warning",
            "Events need more than a minute to become rows.",
        ),
    ),
    Metric(
        "headrace_commit_interval_seconds",
        "gauge",
        "seconds",
        "Time between the last two commits that the launcher saw: how long a row waits for its commit at most.",
        lambda moment: _one(moment.commit_interval),
        Alert(
            "HeadraceCommitsSlowly",
            "quantile_over_time(0.95, headrace_commit_interval_seconds[15m]) > 30",
            "15m",
            "warning",
            "Commits take long; checkpoints are large or the disk is slow.",
        ),
    ),
    Metric(
        "headrace_freshness_seconds",
        "gauge",
        "seconds",
        "The tables are known to hold every event up to this long ago: the watermark's delay, or the last commit's age if the "
        "source had nothing left then.",
        lambda moment: _one(moment.freshness),
        Alert(
            "HeadraceStale",
            "headrace_freshness_seconds > 900",
            "10m",
            "critical",
            "Readers of the lake see data that is a quarter of an hour old.",
        ),
    ),
    Metric(
        "headrace_ledger_balanced",
        "gauge",
        "0 or 1",
        "1 while every row that came in is accepted, rejected or in flight; 0 ends the stream.",
        _counts(lambda counts: counts.balanced),
        Alert(
            "HeadraceLedgerBroken",
            "headrace_ledger_balanced == 0",
            "0m",
            "critical",
            "Rows are lost or doubled: the output can't be trusted. Keep it as evidence and report it.",
        ),
    ),
    Metric(
        "headrace_restarts_total",
        "counter",
        "restarts",
        "Restarts of the job by this launcher; starts at 0 with it.",
        lambda moment: _one(moment.restarts),
        Alert(
            "HeadraceRestarts",
            "increase(headrace_restarts_total[1h]) > 3",
            "0m",
            "warning",
            "The job ends again and again; the launcher's log says why.",
        ),
    ),
    Metric(
        "headrace_alarms_total",
        "counter",
        "alarms",
        "Alarms of a job that runs, such as checkpoints that do not complete; starts at 0 with the launcher.",
        lambda moment: _one(moment.alarms),
        Alert(
            "HeadraceAlarm",
            "increase(headrace_alarms_total[15m]) > 0",
            "0m",
            "warning",
            "The runner is not well; the launcher's log says what it is.",
        ),
    ),
)
