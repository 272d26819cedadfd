"""The export, against a real HTTP server that decodes what it is sent."""

import builtins
import http.server
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from headrace.pipelines.streaming.telemetry import Telemetry
from headrace.pipelines.streaming.telemetry_export import CLOSE_SECONDS, endpoint_of
from headrace.schemas.errors import ConfigError
from tests.pipelines.streaming.figures import Clock, Totals, at, progress

LOG = "headrace.pipelines.streaming.telemetry_export"


class Collector(http.server.ThreadingHTTPServer):
    """Takes metrics as OTLP over HTTP; ``answers`` are its next statuses, then 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.received: queue.Queue[tuple[str, dict[str, str], ExportMetricsServiceRequest]] = queue.Queue()
        self.answers: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.hang = threading.Event()
        self.hang.set()

    def next(self) -> tuple[str, dict[str, str], ExportMetricsServiceRequest]:
        return self.received.get(timeout=10)


class _Receive(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hang.wait(10)
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.received.put((self.path, headers, ExportMetricsServiceRequest.FromString(body)))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.hang.set()
        server.shutdown()
        thread.join()


def points(request: ExportMetricsServiceRequest) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and attributes; all metrics of the request must be of headrace."""
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "headrace"
    found = {}
    for metric in scope.metrics:
        data = metric.sum if metric.WhichOneof("data") == "sum" else metric.gauge
        for point in data.data_points:
            labels = tuple(sorted((a.key, a.value.string_value) for a in point.attributes))
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            found[metric.name, labels] = value
    return found


def test_the_collector_gets_the_same_figures(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    clock = Clock()
    with Telemetry("s0001", "dir:in", None, otlp_endpoint=collector.url, clock=clock) as telemetry:
        telemetry.update(progress(), Totals(watermark=at(-12), last_commit=at(-2)))
        telemetry.event("restart")
        clock.now += 0.5
    path, headers, request = collector.next()
    assert (path, headers["content-type"]) == ("/v1/metrics", "application/x-protobuf")
    assert headers["authorization"] == "secret"
    assert points(request) == {
        ("headrace.up", ()): 1.0,
        ("headrace.ready", ()): 0.0,
        ("headrace.update_age", ()): 0.5,
        ("headrace.rows_in", ()): 1000,
        ("headrace.rows_accepted", ()): 900,
        ("headrace.rows_rejected", (("reason", "json"), ("stage", "decode"))): 40,
        ("headrace.rows_rejected", (("reason", "duplicate"), ("stage", "deduplicate"))): 50,
        ("headrace.rows_rejected", (("reason", "conflict"), ("stage", "deduplicate"))): 0,
        ("headrace.rows_late", (("table", "minutes"),)): 7,
        ("headrace.rows_per_second", ()): 250.0,
        ("headrace.source_lag_records", ()): 25.0,
        ("headrace.rows_in_flight", ()): 10.0,
        ("headrace.watermark_delay", ()): 12.5,
        ("headrace.commits", ()): 5,
        ("headrace.commit_age", ()): 2.5,
        ("headrace.commit_latency", ()): 10.0,
        ("headrace.freshness", ()): 12.5,
        ("headrace.ledger_balanced", ()): 1.0,
        ("headrace.restarts", ()): 1,
        ("headrace.alarms", ()): 0,
    }
    metrics = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["headrace.rows_in"].sum.is_monotonic
    assert metrics["headrace.rows_in"].sum.aggregation_temporality == 2  # cumulative
    assert metrics["headrace.rows_in"].unit == "{row}" and metrics["headrace.commit_age"].unit == "s"
    attributes = {a.key: a.value.string_value for a in request.resource_metrics[0].resource.attributes}
    assert attributes == {
        "service.name": "headrace",
        "service.version": "0.1.0",
        "headrace.stream_job": "s0001",
        "headrace.source": "dir:in",
        "deployment.environment": "test",
    }


def test_the_environment_names_collector_and_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url + "/")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders")
    with Telemetry("s0001", "dir:in", None, clock=Clock()):
        pass
    path, _, request = collector.next()
    assert path == "/v1/metrics"
    attributes = {a.key: a.value.string_value for a in request.resource_metrics[0].resource.attributes}
    assert attributes["service.name"] == "orders"
    assert points(request) == {
        ("headrace.up", ()): 0.0,
        ("headrace.ready", ()): 0.0,
        ("headrace.update_age", ()): 0.0,
        ("headrace.restarts", ()): 0,
        ("headrace.alarms", ()): 0,
    }


def test_an_outage_is_said_once_and_its_end_too(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
    caplog.set_level(logging.INFO)
    collector.answers = [200, 400, 401, 400, 200, 200, 403]
    url = collector.url.replace("http://", "http://user:secret@") + "?token=secret"
    with Telemetry("s0001", "dir:in", None, otlp_endpoint=url, clock=Clock()) as telemetry:
        for _ in range(8):
            telemetry.update(progress(), Totals())
            collector.next()
    said = [
        (record.name, record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == LOG or record.name.startswith("opentelemetry.exporter")
    ]
    away = f"metrics do not reach {collector.url} (Failed to export metrics batch code: {{}}, reason: {{}}); "
    away += "the stream goes on, and this is not said again until they do"
    assert said[:4] == [
        (LOG, "WARNING", away.format(400, "Bad Request")),
        (LOG, "INFO", f"metrics reach {collector.url} again"),
        (LOG, "WARNING", away.format(403, "Forbidden")),
        (LOG, "INFO", f"metrics reach {collector.url} again"),
    ]
    assert len(said) == 4 and "secret" not in caplog.text
    assert not logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter").filters


def test_a_collector_that_is_away_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Telemetry(
        "s0001", "dir:in", 0, otlp_endpoint=f"http://127.0.0.1:{port}", clock=Clock()
    ) as telemetry:
        telemetry.update(progress(), Totals())
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"metrics do not reach http://127.0.0.1:{port} (Failed to export metrics batch"
    )


def test_a_collector_that_hangs_slows_nothing(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "5")
    monkeypatch.setattr("headrace.pipelines.streaming.telemetry_export.CLOSE_SECONDS", 0.1)
    assert CLOSE_SECONDS <= 5
    collector.hang.clear()
    began = time.monotonic()
    with Telemetry("s0001", "dir:in", None, otlp_endpoint=collector.url, clock=Clock()) as telemetry:
        for _ in range(1000):
            telemetry.update(progress(), Totals())
    assert time.monotonic() - began < 5


def test_the_export_ends_quickly_once_the_collector_is_known_to_be_away(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
    collector.answers = [400] * 1000
    with Telemetry("s0001", "dir:in", None, otlp_endpoint=collector.url, clock=Clock()):
        collector.next()
        collector.next()
    assert not [t for t in threading.enumerate() if "PeriodicExporting" in t.name]


def test_a_missing_package_is_said_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry.exporter")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(
            ConfigError,
            match=r"the package opentelemetry\.exporter is missing: pip install 'headrace\[otel\]', or unset",
        ),
        Telemetry("s0001", "dir:in", 0, otlp_endpoint="http://localhost:4318", clock=Clock()) as telemetry,
    ):
        raise AssertionError(telemetry)
    assert not [t for t in threading.enumerate() if t.name == "headrace-health"], "what was started is ended"


@pytest.mark.parametrize(
    ("argument", "environ", "expected"),
    [
        (None, {}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ("http://a:4318", {}, "http://a:4318/v1/metrics"),
        ("https://a/otlp/", {}, "https://a/otlp/v1/metrics"),
        ("http://a:4318/v1/metrics", {}, "http://a:4318/v1/metrics"),
        ("http://a:4318/?k=v", {}, "http://a:4318/v1/metrics?k=v"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4318"}, "http://b:4318/v1/metrics"),
        ("http://a:4318", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4318"}, "http://a:4318/v1/metrics"),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/in"},
            "http://c/in",
        ),
        ("http://a", {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/in"}, "http://a/v1/metrics"),
        ("http://a", {"OTEL_SDK_DISABLED": "true"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_METRICS_EXPORTER": "none"}, None),
        ("http://a", {"OTEL_METRICS_EXPORTER": "none"}, "http://a/v1/metrics"),
    ],
)
def test_where_metrics_go(argument: str | None, environ: dict[str, str], expected: str | None) -> None:
    assert endpoint_of(argument, environ) == expected


@pytest.mark.parametrize(
    "url", ["localhost:4318", "grpc://a:4317", "http://", "http://a:port", "http://user:secret@"]
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no http:// or https:// URL with a host") as caught:
        Telemetry("s0001", "dir:in", None, otlp_endpoint=url)
    assert "secret" not in str(caught.value)


def test_another_protocol_is_refused() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(ConfigError, match="is 'grpc', headrace sends http/protobuf; set"):
        endpoint_of(None, environ)
    environ["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"] = "http/protobuf"
    assert endpoint_of(None, environ) == "http://a:4317/v1/metrics"
