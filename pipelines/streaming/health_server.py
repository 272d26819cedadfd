"""A small HTTP server for ``/metrics``, ``/healthz`` and ``/readyz``."""

import errno
import json
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from headrace.pipelines.streaming.telemetry_figures import Moment
from headrace.pipelines.streaming.telemetry_metrics import METRICS
from headrace.schemas.errors import ConfigError

PATHS = ("/metrics", "/healthz", "/readyz")
REQUEST_SECONDS = 10.0
"""For one request; a client that is slower is cut off."""

_log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """Whether something is well, and why."""

    well: bool
    reason: str


class HealthServer:
    """Serves from threads of its own; takes nothing but GET.

    Args:
        host: address to listen on.
        port: 0 for a free one.
        moment: gives the figures.
        health: answers ``/healthz``.
        ready: answers ``/readyz``.

    Raises:
        ConfigError: it can't listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        moment: Callable[[], Moment],
        health: Callable[[], Verdict],
        ready: Callable[[], Verdict],
    ) -> None:
        registry_ = CollectorRegistry()
        registry_.register(_Figures(moment))

        class Handler(_Handler):
            registry = registry_
            verdicts: ClassVar = {"/healthz": health, "/readyz": ready}

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                gone = isinstance(sys.exception(), OSError)
                _log.log(
                    logging.DEBUG if gone else logging.ERROR, "a request was not answered", exc_info=True
                )

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(_explain(host, port, error)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="headrace-health", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops listening; a request that is being answered does not hold it up."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(MetricsHandler):
    """``/metrics`` as Prometheus asks for it (text or OpenMetrics, gzip), the other paths as JSON."""

    timeout = REQUEST_SECONDS
    server_version = "headrace"
    sys_version = ""
    verdicts: ClassVar[dict[str, Callable[[], Verdict]]]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif path in self.verdicts:
            well, reason = self.verdicts[path]()
            self._answer(200 if well else 503, {"ok": well, "reason": reason})
        else:
            self._answer(404, {"ok": False, "reason": f"there is nothing here; ask for {', '.join(PATHS)}"})

    def _answer(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


class _Figures(Collector):
    """The declared metrics at the moment of a scrape, as families of prometheus_client."""

    def __init__(self, moment: Callable[[], Moment]) -> None:
        self._moment = moment

    def collect(self) -> Iterator[Family]:
        moment = self._moment()
        for metric in METRICS:
            samples = metric.read(moment)
            if metric.kind == "info":
                info = InfoMetricFamily(metric.name.removesuffix("_info"), metric.meaning)
                for values, _ in samples:
                    info.add_metric([], dict(zip(metric.labels, values, strict=True)))
                yield info
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.meaning, labels=metric.labels)
            for values, value in samples:
                family.add_metric(values, value)
            yield family


def _explain(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--metrics-port {port} is in use on {host}; name another, or 0 for a free one (its number is logged)"
    if error.errno == errno.EACCES:
        return f"--metrics-port {port} needs more rights than this user has; name one from 1024 on"
    return f"metrics can't be served on {host} port {port}: {error.strerror}; name an address of this machine"
