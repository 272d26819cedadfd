import gzip
import http.client
import json
import logging
import socket
import threading

import pytest

from headrace.pipelines.streaming.telemetry import Telemetry
from headrace.schemas.errors import ConfigError
from tests.pipelines.streaming.figures import Clock, Totals, at, get, progress


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def made(clock: Clock) -> Telemetry:
    return Telemetry("s0001", "dir:in", None, clock=clock)


def test_healthy_while_the_launcher_looks() -> None:
    clock = Clock()
    telemetry = made(clock)
    clock.now += 1
    telemetry.update(progress(), Totals())
    clock.now += 59.9
    assert telemetry.health() == (
        True,
        "the launcher looked at its job 60 s ago, at most 60 s are allowed",
    )
    clock.now += 0.1
    assert not telemetry.health().well
    telemetry.update(progress(), Totals())
    assert telemetry.health().well


@pytest.mark.parametrize("event", ["restart", "stop"])
def test_starting_restarting_and_stopping_may_take_longer(event: str) -> None:
    clock = Clock()
    telemetry = made(clock)
    clock.now += 299
    expected = "the launcher has been starting or stopping its job for 299 s, at most 300 s are allowed"
    assert telemetry.health() == (True, expected)
    clock.now += 1
    assert not telemetry.health().well
    telemetry.update(progress(), Totals())
    telemetry.event(event)  # type: ignore[arg-type]
    clock.now += 299
    assert telemetry.health() == (True, expected)
    clock.now += 1
    assert not telemetry.health().well
    telemetry.update(progress(), Totals())
    clock.now += 60
    assert not telemetry.health().well, "the patience ends with the next look"


def test_an_alarm_gives_no_time() -> None:
    clock = Clock()
    telemetry = made(clock)
    clock.now += 1
    telemetry.update(progress(), Totals())
    telemetry.event("alarm")
    clock.now += 60
    assert not telemetry.health().well


def test_ready_once_the_job_has_committed() -> None:
    clock = Clock()
    telemetry = made(clock)
    assert telemetry.readiness() == (False, "the job is starting")
    clock.now += 10
    telemetry.update(progress("starting"), Totals(last_commit=None, commits=0))
    assert telemetry.readiness() == (
        False,
        "the job (starting) has not committed since it was started",
    )
    telemetry.update(progress(), Totals(last_commit=at(-500)))
    assert telemetry.readiness() == (False, "the job (running) has not committed since it was started"), (
        "a commit of an earlier launcher"
    )
    telemetry.update(progress("starting"), Totals(rows_in=0, last_commit=at(9)))
    assert telemetry.readiness() == (True, "the last commit is 1 s old"), "no rows yet, but it commits"


def test_not_ready_once_commits_stop() -> None:
    clock = Clock()
    telemetry = made(clock)
    clock.now += 130
    telemetry.update(progress(), Totals(last_commit=at(11), behind=1234))
    assert telemetry.readiness().well
    telemetry.update(progress(), Totals(last_commit=at(10), behind=1234))
    assert telemetry.readiness() == (
        False,
        "the last commit is 120 s old, at most 120 s are allowed while 1,234 records wait",
    )
    telemetry.update(progress(), Totals(last_commit=at(10), behind=0))
    assert telemetry.readiness() == (True, "the source is idle; the last commit is 120 s old")


def test_not_ready_after_a_restart_until_it_commits() -> None:
    clock = Clock()
    telemetry = made(clock)
    telemetry.update(progress(), Totals(last_commit=at(0)))
    assert telemetry.readiness().well
    clock.now += 5
    telemetry.event("restart")
    telemetry.update(progress("restarting"), Totals(last_commit=at(0), behind=0))
    assert telemetry.readiness() == (
        False,
        "the job (restarting) has not committed since it was started",
    )
    telemetry.update(progress("restarting"), Totals(last_commit=at(5)))
    assert telemetry.readiness().well


def test_not_ready_while_draining_stuck_or_broken() -> None:
    clock = Clock()
    telemetry = made(clock)
    telemetry.update(progress("draining"), Totals(last_commit=at(0)))
    assert telemetry.readiness() == (False, "the job is draining: it reads no more")
    telemetry.update(progress(), Totals(last_commit=at(0), balanced=False))
    assert telemetry.readiness() == (False, "the ledger does not balance: the output can't be trusted")
    clock.now += 300
    telemetry.update(progress(), Totals(last_commit=at(300)))
    assert telemetry.readiness().well
    clock.now += 60
    assert telemetry.readiness() == (
        False,
        "the launcher looked at its job 60 s ago, at most 60 s are allowed",
    )


def test_the_limits_are_settings() -> None:
    clock = Clock()
    telemetry = Telemetry("s", "dir:in", None, stale_after_seconds=5, clock=clock, commit_within_seconds=2.5)
    clock.now += 1
    telemetry.update(progress(), Totals(last_commit=at(0)))
    assert telemetry.readiness().well
    clock.now += 1.5
    assert telemetry.health().well and not telemetry.readiness().well
    clock.now += 3.5
    assert telemetry.health().reason == "the launcher looked at its job 5 s ago, at most 5 s are allowed"


def test_health_over_http() -> None:
    clock = Clock()
    with Telemetry("s0001", "dir:in", 0, clock=clock) as telemetry:
        telemetry.update(progress(), Totals(last_commit=at(0)))
        status, kind, body = get(telemetry.port, "/healthz")
        assert (status, kind) == (200, "application/json")
        assert json.loads(body) == {"ok": True, "reason": telemetry.health().reason}
        status, _, body = get(telemetry.port, "/readyz?verbose")
        assert (status, json.loads(body)) == (200, {"ok": True, "reason": "the last commit is 0 s old"})
        clock.now += 301
        for path in ("/healthz", "/readyz"):
            status, _, body = get(telemetry.port, path)
            assert status == 503
            assert json.loads(body)["ok"] is False and "301 s" in json.loads(body)["reason"]
        status, _, body = get(telemetry.port, "/")
        assert status == 404
        assert json.loads(body)["reason"] == "there is nothing here; ask for /metrics, /healthz, /readyz"


def test_prometheus_gets_the_format_that_it_asks_for() -> None:
    with Telemetry("s0001", "dir:in", 0, clock=Clock()) as telemetry:
        telemetry.update(progress(), Totals())
        status, kind, body = get(
            telemetry.port,
            "/metrics",
            Accept="application/openmetrics-text; version=1.0.0",
            Accept_Encoding="gzip",
        )
    assert status == 200 and kind.startswith("application/openmetrics-text; version=1.0.0")
    text = gzip.decompress(body).decode()
    assert "headrace_rows_in_total 1000.0" in text and text.endswith("# EOF\n")


def test_only_get_is_answered() -> None:
    with Telemetry("s0001", "dir:in", 0, clock=Clock()) as telemetry:
        assert telemetry.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", telemetry.port, timeout=5)
        connection.request("POST", "/metrics", body=b"x")
        assert connection.getresponse().status == 501
        connection.close()


def test_the_server_ends_with_the_context_even_while_a_client_dawdles() -> None:
    with Telemetry("s0001", "dir:in", 0, clock=Clock()) as telemetry:
        port = telemetry.port
        assert port is not None and port > 0
        slow = socket.create_connection(("127.0.0.1", port), timeout=5)
        slow.sendall(b"GET /metr")
    assert telemetry.port is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    slow.close()
    assert not [t for t in threading.enumerate() if t.name == "headrace-health"]


def test_a_port_in_use_is_refused_with_the_fix() -> None:
    with (
        Telemetry("s0001", "dir:in", 0, clock=Clock()) as first,
        pytest.raises(
            ConfigError,
            match=rf"--metrics-port {first.port} is in use on 127\.0\.0\.1; name another, or 0 for a free one",
        ),
        Telemetry("s0002", "dir:in", first.port, clock=Clock()),
    ):
        raise AssertionError("two servers on one port")


def test_a_wrong_port_or_host_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--metrics-port is 70000; a port is a number from 0 \(a free one\) to 65535"
    ):
        Telemetry("s0001", "dir:in", 70000)
    with (
        pytest.raises(
            ConfigError,
            match=r"can't be served on 203\.0\.113\.1 port 0: .*; name an address of this machine",
        ),
        Telemetry("s0001", "dir:in", 0, "203.0.113.1"),
    ):
        raise AssertionError("served on a foreign address")


def test_no_port_no_server() -> None:
    with Telemetry("s0001", "dir:in", None, clock=Clock()) as telemetry:
        assert telemetry.port is None


def test_a_failing_answer_is_logged_and_serving_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with Telemetry("s0001", "dir:in", 0, clock=clock) as telemetry:
        monkeypatch.setattr(telemetry, "_clock", lambda: 1 / 0)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            get(telemetry.port, "/metrics")
        monkeypatch.setattr(telemetry, "_clock", clock)
        assert get(telemetry.port, "/metrics")[0] == 200
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == ["a request was not answered"]
    assert errors[0].exc_info is not None and errors[0].exc_info[0] is ZeroDivisionError
