"""The figures of a running stream for an OpenTelemetry collector, over OTLP/HTTP."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from headrace.pipelines.streaming.telemetry_figures import Moment
from headrace.pipelines.streaming.telemetry_metrics import METRICS, UNITS, Metric
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

PATH = "/v1/metrics"
INTERVAL_SECONDS = 15.0
"""Between two exports, unless ``OTEL_METRIC_EXPORT_INTERVAL`` (milliseconds) says otherwise."""
CLOSE_SECONDS = 3.0
"""For the last export."""
_EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
_URL = re.compile(r"(://|url: )\S+")
"""May hold a secret."""

_log = logging.getLogger(__name__)


def endpoint_of(argument: str | None, environ: Mapping[str, str]) -> str | None:
    """Returns the full URL to send metrics to; None: send none.

    Args:
        argument: base URL of a collector; goes over the environment.
        environ: ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`` (full URL), ``OTEL_EXPORTER_OTLP_ENDPOINT`` (base URL);
            ``OTEL_SDK_DISABLED=true`` and ``OTEL_METRICS_EXPORTER=none`` turn the export off.

    Raises:
        ConfigError: no http(s) URL, or the environment asks for another protocol than HTTP.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if argument is None and environ.get("OTEL_METRICS_EXPORTER", "").strip() == "none":
        return None
    full = None if argument else environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    base = argument or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    url = full or base
    if not url:
        return None
    if not _is_http(url):
        raise ConfigError(
            "the OpenTelemetry endpoint is no http:// or https:// URL with a host; name the collector's HTTP port, for example "
            "http://localhost:4318"
        )
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if protocol != "http/protobuf":
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, headrace sends http/protobuf; set "
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf and name the collector's HTTP port, usually 4318"
        )
    parts = urlsplit(url)
    if full or parts.path.endswith(PATH):
        return url
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + PATH))


class Export:
    """Sends the figures every few seconds from a thread of its own; a collector that is away changes nothing for the stream.

    Its headers, certificates, timeout and compression come from the variables ``OTEL_EXPORTER_OTLP_*``, the attributes of the
    resource from ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME``.

    Args:
        url: full URL.
        info: attributes ``headrace.NAME`` of the resource, and ``version``.
        moment: gives the figures.

    Raises:
        ConfigError: the packages are missing.
    """

    def __init__(self, url: str, info: Mapping[str, str], moment: Callable[[], Moment]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"an OpenTelemetry endpoint is set, but the package {error.name} is missing: pip install 'headrace[otel]', or "
                "unset OTEL_EXPORTER_OTLP_ENDPOINT"
            ) from error
        self._moment = moment
        self._held = moment()
        self._watch = _Outage(_place(url))
        exporter: Any = OTLPMetricExporter(endpoint=url)
        self._watch.over(exporter)
        interval = None if os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") else INTERVAL_SECONDS * 1000
        attributes = {
            "service.name": "headrace",
            "service.version": info["version"],
            **{f"headrace.{name}": value for name, value in info.items() if name != "version"},
        }
        resource = Resource(attributes).merge(OTELResourceDetector().detect())
        self._provider = MeterProvider(
            metric_readers=[PeriodicExportingMetricReader(exporter, interval)],
            resource=resource,
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("headrace", info["version"])
        for number, metric in enumerate(metric for metric in METRICS if metric.kind != "info"):
            make: Callable[..., object] = (
                meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            )
            make(
                metric.otel_name,
                callbacks=[self._callback(metric, first=number == 0)],
                unit=UNITS[metric.unit],
                description=metric.meaning,
            )

    def _callback(
        self, metric: Metric, *, first: bool
    ) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        """Returns what reads one metric. The first takes the figures for all, so that one export shows one moment."""
        from opentelemetry.metrics import Observation

        def observe(options: "CallbackOptions") -> "Iterable[Observation]":
            if first:
                self._held = self._moment()
            return [
                Observation(
                    int(value) if metric.kind == "counter" else value,
                    dict(zip(metric.labels, labels, strict=True)),
                )
                for labels, value in metric.read(self._held)
            ]

        return observe

    def close(self) -> None:
        """Exports once more, unless the last export failed, and ends; returns within a few seconds."""
        self._watch.closing = True
        try:
            self._provider.shutdown(timeout_millis=CLOSE_SECONDS * 1000)
        except Exception as error:  # noqa: BLE001 - the stream must end as it ended, whatever the export does
            _log.warning(
                "the last export of metrics to %s failed: %s", self._watch.place, type(error).__name__
            )
        finally:
            self._watch.end()


class _Outage(logging.Filter):
    """Says once that the collector does not take metrics, and once that it does again, instead of the exporter's own lines."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.closing = False
        self._away = False
        self._reason = ""
        logging.getLogger(_EXPORTER_LOG).addFilter(self)

    def end(self) -> None:
        logging.getLogger(_EXPORTER_LOG).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self._reason = _URL.sub(r"\1…", record.getMessage())
        return False

    def over(self, exporter: Any) -> None:
        """Lets every export of the exporter pass through here."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        export = exporter.export

        def watched(*arguments: Any, **options: Any) -> MetricExportResult:
            if self.closing and self._away:
                return MetricExportResult.FAILURE
            try:
                result: MetricExportResult = export(*arguments, **options)
            except Exception as error:  # noqa: BLE001 - any failure of an export is an outage and is said as one
                self._reason = type(error).__name__
                result = MetricExportResult.FAILURE
            self._note(result is MetricExportResult.SUCCESS)
            return result

        exporter.export = watched

    def _note(self, done: bool) -> None:
        if done and self._away:
            _log.info("metrics reach %s again", self.place)
        elif not done and not self._away:
            _log.warning(
                "metrics do not reach %s (%s); the stream goes on, and this is not said again until they do",
                self.place,
                self._reason,
            )
        self._away = not done


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # The port is no number.
        return False


def _place(url: str) -> str:
    """Returns scheme, host and port of a URL: the rest may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
