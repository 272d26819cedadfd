"""``docs/metrics.md``, written from the declarations of the metrics."""

import yaml

from headrace.pipelines.streaming.telemetry_metrics import METRICS, Metric


def alert_rules() -> str:
    """Returns a rules file for Prometheus with one alert a metric."""
    rules = [
        {
            "alert": metric.alert.name,
            "expr": metric.alert.expr,
            "for": metric.alert.hold,
            "labels": {"severity": metric.alert.severity},
            "annotations": {"summary": metric.alert.summary},
        }
        for metric in METRICS
    ]
    text: str = yaml.safe_dump(
        {"groups": [{"name": "headrace", "rules": rules}]}, sort_keys=False, width=120, allow_unicode=True
    )
    return text


def metrics_page() -> str:
    """Returns ``docs/metrics.md``."""
    rows = "\n".join(_row(metric) for metric in METRICS)
    return f"""# Metrics, health and logs of a stream

Written from the declarations in `pipelines/streaming/telemetry_metrics.py`; change them there and run
`python -m headrace.pipelines.metrics_page > docs/metrics.md`.

`headrace run stream --metrics-port PORT` serves on 127.0.0.1:

| path | answer |
|---|---|
| `/metrics` | the metrics below for Prometheus, as text or OpenMetrics |
| `/healthz` | 200 if the launcher looked at its job within 60 s (300 s while it starts, restarts or stops it), else 503 |
| `/readyz` | 200 if the job has committed within 120 s and since its start, or its source had nothing left; else 503 |

The last two say why: `{{"ok": true, "reason": "the last commit is 2 s old"}}`. Port 0 takes a free port and logs it.

All counts but restarts and alarms are of the committed ledger: a restart of job or launcher does not set them back, and what is
read again after a crash counts once. A metric whose value is not known yet has no series. No label holds a value of a document;
the labels have few values.

| metric | type | unit | labels | meaning | OpenTelemetry | alert |
|---|---|---|---|---|---|---|
{rows}

## OpenTelemetry
With `pip install 'headrace[otel]'` and `OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318` the same figures go to a collector
every 15 seconds (`OTEL_METRIC_EXPORT_INTERVAL`, in milliseconds), as OTLP over HTTP in protobuf. Job, source and version are
attributes of the resource: `headrace.stream_job`, `headrace.source`, `service.version`. The other `OTEL_EXPORTER_OTLP_*` variables
(headers, certificates, timeout, compression), `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_METRICS_EXPORTER=none` and
`OTEL_SDK_DISABLED` hold as everywhere. A collector that is away is logged once and never holds up the stream.

Counters start where the ledger stands, so with `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta` the first export of a
launcher holds the rows of all launchers before it; the default, cumulative, has no such step.

## Alerts
Rules for Prometheus, one a metric; the thresholds are to start from.

```yaml
{alert_rules().rstrip()}
```

## Logs
`--log-format json` writes one JSON object a line to standard error:

| key | |
|---|---|
| `time` | UTC, ISO 8601, microseconds |
| `level` | `debug`, `info`, `warning`, `error`, `critical` |
| `logger` | the component |
| `message` | what happened, without values of documents |
| `job` | the stream's job; absent before it has a name |
| `fields` | figures that belong to the message; absent if there are none |
| `exception` | `type`, `message`, `traceback` of the error, and `causes`, from the last to the first; absent if there is none |

The message of an error that is neither headrace's own nor the operating system's may quote a document, so it is withheld; its
type and the places in the code are there. `--log-level` is `debug`, `info` (the default), `warning` or `error`. Beam, Flink and
other libraries are heard from `warning` on.
"""


def _row(metric: Metric) -> str:
    cells = (
        f"`{metric.name}`",
        metric.kind,
        metric.unit,
        ", ".join(f"`{label}`" for label in metric.labels),
        metric.meaning,
        "attributes of the resource" if metric.kind == "info" else f"`{metric.otel_name}`",
        metric.alert.name,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(metrics_page(), end="")
