"""Runs tell of themselves by the OpenLineage specification, to a file or a collector, and never fail by it."""

import json
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.pipelines import stream
from headrace.pipelines.cli import app
from headrace.pipelines.lineage.run_events import SCHEMA_URL, Running, dataset, told
from headrace.pipelines.lineage.transport import FileTransport, HttpTransport, transport_of
from headrace.pipelines.nightly.nightly import run_nightly
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.pipelines.replay.damaged import write_events
from tests.pipelines.test_stream_command import FakeStream

Event = dict[str, Any]


class Collector(HTTPServer):
    """Keeps what is posted to it; answers with ``status``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 201
        self.posts: list[tuple[str, str | None, Event]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(event: Event) -> None:
    """Holds an event against what version 2-0-2 of the specification requires of it."""
    assert set(event) == {
        "eventType",
        "eventTime",
        "run",
        "job",
        "inputs",
        "outputs",
        "producer",
        "schemaURL",
    }
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["eventTime"])
    assert str(uuid.UUID(event["run"]["runId"])) == event["run"]["runId"]
    assert event["schemaURL"] == SCHEMA_URL
    assert event["producer"].startswith("urn:headrace:")
    assert all(isinstance(event["job"][name], str) and event["job"][name] for name in ("namespace", "name"))
    facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
    for each in (*event["inputs"], *event["outputs"]):
        assert set(each) <= {"namespace", "name", "facets", "outputFacets"}
        assert each["namespace"]
        assert each["name"]
        facets += [*each["facets"].values(), *each.get("outputFacets", {}).values()]
        for field in each["facets"].get("schema", {}).get("fields", []):
            assert field["name"]
            assert field["type"]
    for facet in facets:
        assert facet["_producer"] == event["producer"]
        assert re.fullmatch(r"https://openlineage\.io/spec/.+\.json#/\$defs/\w+", facet["_schemaURL"])


def read(path: Path) -> list[Event]:
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    for event in events:
        check(event)
    return events


def test_a_run_that_ends_and_one_that_fails(tmp_path: Path) -> None:
    way = FileTransport(tmp_path / "events.jsonl")
    at = iter(datetime(2026, 1, 5, 12, n, tzinfo=UTC) for n in range(9))
    setting = {"inputs": ["in"], "outputs": ["out"], "configuration": {"a": 1}, "clock": lambda: next(at)}
    with told("batch.out", transport=way, **setting):  # type: ignore[arg-type]
        pass
    with (
        pytest.raises(UntrustedRunError),
        told("batch.out", transport=way, **setting),  # type: ignore[arg-type]
    ):
        raise UntrustedRunError("2 rows are missing")
    with (
        pytest.raises(ValueError, match="jane"),
        told("batch.out", transport=way, **setting),  # type: ignore[arg-type]
    ):
        raise ValueError("jane@example.com")
    with (
        pytest.raises(KeyboardInterrupt),
        told("batch.out", transport=way, **setting),  # type: ignore[arg-type]
    ):
        raise KeyboardInterrupt
    events = read(tmp_path / "events.jsonl")
    types = ["START", "COMPLETE", "START", "FAIL", "START", "FAIL", "START", "ABORT"]
    assert [event["eventType"] for event in events] == types
    ids = [event["run"]["runId"] for event in events]
    assert ids[0::2] == ids[1::2]
    assert len(set(ids)) == 4
    assert events[3]["run"]["facets"]["errorMessage"]["message"] == "2 rows are missing"
    assert (
        events[5]["run"]["facets"]["errorMessage"]["message"] == "ValueError"
    )  # It may hold a value of an event.
    prints = {event["run"]["facets"]["headrace_run"]["configurationFingerprint"] for event in events}
    assert len(prints) == 1
    assert prints != {Running("x", "BATCH", [], [], "other").fingerprint}
    assert events[1]["eventTime"] == "2026-01-05T12:01:00.000Z"


def test_over_http_with_a_key(collector: Collector) -> None:
    way = HttpTransport(collector.url, api_key="secret")
    with told("a", inputs=[], outputs=[], configuration={}, transport=way):
        pass
    assert [(path, key) for path, key, _ in collector.posts] == [("/api/v1/lineage", "Bearer secret")] * 2
    for _, _, event in collector.posts:
        check(event)


def test_a_collector_that_fails_is_told_of_once_and_fails_nothing(
    collector: Collector, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    collector.status = 500
    away = HttpTransport("http://user:word@127.0.0.1:9", timeout_seconds=0.5)
    full = FileTransport(tmp_path)  # A folder can't be appended to.
    with caplog.at_level(logging.WARNING):
        for way in (HttpTransport(collector.url), away, full):
            with told("a", inputs=[], outputs=[], configuration={}, transport=way):
                pass
    assert len(caplog.messages) == 3
    assert all("the run goes on without it" in text for text in caplog.messages)
    assert "word" not in caplog.text
    assert len(collector.posts) == 2


def test_the_environment_names_the_transport(tmp_path: Path) -> None:
    assert transport_of({}) is None
    assert isinstance(transport_of({"OPENLINEAGE_URL": "https://c:1"}), HttpTransport)
    for target in (str(tmp_path / "e.jsonl"), f"file://{tmp_path}/e.jsonl"):
        way = transport_of({"HEADRACE_LINEAGE": target, "OPENLINEAGE_URL": "http://c"})
        assert isinstance(way, FileTransport)
        way.send({"a": 1})
    assert (tmp_path / "e.jsonl").read_bytes() == b'{"a": 1}\n' * 2
    with pytest.raises(ConfigError, match="OPENLINEAGE_URL is ftp"):
        transport_of({"OPENLINEAGE_URL": "ftp://c"})
    with pytest.raises(ConfigError, match="does not exist"):
        transport_of({"HEADRACE_LINEAGE": str(tmp_path / "no" / "e.jsonl")})


def test_names_of_streams() -> None:
    names = {place: dataset(place) for place in ("kafka://u:p@b:9/t?group=g", "pubsub://p/s")}
    assert [(d["namespace"], d["name"]) for d in names.values()] == [
        ("kafka://b:9", "t"),
        ("pubsub", "subscription:p:s"),
    ]
    assert dataset("dir:/logs?x=1")["name"] == "/logs"


def test_a_stream_tells_of_itself_and_a_dry_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_LINEAGE", str(tmp_path / "lineage.jsonl"))
    monkeypatch.setattr(stream, "run_stream", FakeStream())
    out = tmp_path / "lake"
    command = ["run", "stream", "--source", "kafka://h:1/t", "--output", str(out), "--quiet"]
    for more in (["--dry-run"], []):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    events = read(tmp_path / "lineage.jsonl")
    assert [(e["job"]["name"], e["eventType"]) for e in events] == [
        ("stream.lake", "START"),
        ("stream.lake", "COMPLETE"),
    ]
    assert {e["job"]["facets"]["jobType"]["processingType"] for e in events} == {"STREAMING"}
    assert [(d["namespace"], d["name"]) for d in events[0]["inputs"]] == [("kafka://h:1", "t")]
    assert str(out / "events") in [d["name"] for d in events[0]["outputs"]]


@pytest.mark.integration
def test_batch_nightly_and_replay_tell_of_themselves(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "lineage.jsonl"
    monkeypatch.setenv("HEADRACE_LINEAGE", str(log))
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
    _, bad = write_events(tmp_path, 200)
    out, house = tmp_path / "out", tmp_path / "house"
    runner = CliRunner()
    options = ["--key-file", str(key)]
    command = [
        "run",
        "batch",
        "--input",
        str(bad),
        "--output",
        str(out),
        "--now",
        "2026-01-05T13:00:00Z",
        "--quiet",
    ]
    assert runner.invoke(app, [*command, *options]).exit_code == 0
    run_nightly(NightlyConfig(lake=str(out), output=str(house)), (date(2026, 1, 5), date(2026, 1, 5)))
    assert runner.invoke(app, ["quarantine", "replay", str(out), "--dry-run", *options]).exit_code == 0
    assert runner.invoke(app, ["quarantine", "replay", str(out), *options]).exit_code == 0
    assert runner.invoke(app, [*command[:3], "none", *command[4:], *options]).exit_code == 2
    events = read(log)
    assert [(e["job"]["name"], e["eventType"]) for e in events] == [
        ("batch.out", "START"),
        ("batch.out", "COMPLETE"),
        ("nightly.house", "START"),
        ("nightly.house", "COMPLETE"),
        ("replay.out", "START"),
        ("replay.out", "COMPLETE"),
        ("batch.out", "START"),
        ("batch.out", "FAIL"),
    ]
    assert {e["job"]["namespace"] for e in events} == {"shop"}
    done = {each["name"]: each for each in events[1]["outputs"]}
    lake = done[str(out / "events")]
    said = json.loads((out / "ledger.json").read_bytes())
    assert lake["outputFacets"]["outputStatistics"]["rowCount"] == said["accepted"]
    assert {"event_id", "event_time"} <= {each["name"] for each in lake["facets"]["schema"]["fields"]}
    assert str(out / "metrics" / "events_per_minute") in done
    assert [each["name"] for each in events[1]["inputs"]] == [str(bad)]
    assert [each["name"] for each in events[3]["inputs"]] == [str(out / "events")]
    assert events[3]["run"]["facets"]["nominalTime"]["nominalStartTime"] == "2026-01-05T00:00:00.000Z"
