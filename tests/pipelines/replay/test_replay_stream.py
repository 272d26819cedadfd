"""Replaying beside a stream: nothing twice, whatever comes from its source later; windows are right."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import JobRecord, open_stream_output
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.replay.run_replay import ReplayResult, run_replay
from headrace.pipelines.stream_config import StreamConfig
from headrace.schemas.errors import ConfigError
from tests.pipelines.replay.damaged import FIXES, load, rows_of, write_events
from tests.pipelines.streaming.line_source import LineReader, LineSource
from tests.pipelines.streaming.local import Local, latest, make_task

pytestmark = pytest.mark.integration

DAY = timedelta(hours=24)


@dataclass(frozen=True)
class TimedSource(LineSource):
    """Each record reaches us a second after its event; what has no time, with the record before it."""

    def open(self, position: str) -> LineReader:
        return TimedReader(self, orjson.loads(position))


class TimedReader(LineReader):
    def poll(self, max_rows: int, timeout_seconds: float) -> Any:
        poll = super().poll(max_rows, timeout_seconds)
        times, last = [], self._source.ingest_time
        for raw in poll.batch.column("raw").to_pylist():
            found = raw.partition(b'"timestamp":')[2].strip()[1:].partition(b'"')[0].decode()
            last = datetime.fromisoformat(found) + timedelta(seconds=1) if found else last
            times.append(last)
        column = pa.array(times, poll.batch.schema.field("ingest_time").type)
        at = poll.batch.schema.get_field_index("ingest_time")
        return replace(poll, batch=poll.batch.set_column(at, "ingest_time", column))


@dataclass
class Stream:
    local: Local
    out: Path
    config: StreamConfig
    lines: list[bytes]
    good: dict[str, datetime]
    """event_id → event_time of all events."""
    fixes: list[Any]
    read: int = 0

    def read_until(self, rows: int) -> None:
        """Lets the reader come to about this record, and everything be committed."""
        while self.read < rows:
            self.local.heartbeat()
            self.read += 40
        self.local.settle()

    def replay(self, **more: Any) -> ReplayResult:
        return run_replay(self.out, self.config, fixes=self.fixes, fixes_text=FIXES, **more)


@pytest.fixture(params=["accumulating", "retracting", "discarding"])
def stream(request: pytest.FixtureRequest, tmp_path: Path, key: Path) -> Stream:
    good, bad = write_events(tmp_path, 900, span="72h")
    lines = bad.read_bytes().splitlines()
    # What a producer sends again, mended: once within a day, and once when it is stale.
    copies = {n: lines[n - 200] for n in range(300, len(lines), 100)}
    goods = good.read_bytes().splitlines()
    merged = [
        line
        for n, bad_line in enumerate(lines)
        for line in ([bad_line, goods[n - 200]] if n in copies else [bad_line])
    ]
    bad.write_bytes(b"\n".join(merged) + b"\n")
    out = tmp_path / "out"
    config = StreamConfig(
        source="dir:x",
        output=str(out),
        key_file=str(key),
        rules={},
        accumulation=request.param,
        early_seconds=0,
    )
    definition = build_definition(config)
    first = datetime(2026, 1, 5, 12, tzinfo=UTC)
    source = TimedSource(str(bad), first, partitions=1, per_poll=40)
    task = make_task(out, source, key, accumulation=request.param, until_us=None, definition=definition)
    with open_stream_output(out) as output:
        output.add(
            JobRecord(
                task.job,
                "2026-01-05T12:00:00Z",
                "lines",
                {"window_shards": 2},
                definition_identity(config, definition),
            )
        )
    documents = [orjson.loads(line) for line in goods]
    times = {d["event_id"]: datetime.fromisoformat(d["timestamp"]) for d in documents}
    return Stream(Local(task), out, config, merged, times, load(tmp_path))


def test_beside_a_running_stream(stream: Stream) -> None:
    stream.read_until(600)
    with open_stream_output(stream.out):  # As the launcher holds it.
        result = stream.replay()
        assert result.record.recovered > 20
        assert sum(result.record.waiting.values()) > 20
        limit = read_stream_ledger(stream.out).watermark
        assert limit is not None
        _check(stream, limit)
        stream.read_until(len(stream.lines))
        limit = read_stream_ledger(stream.out).watermark
        assert limit is not None
        again = stream.replay()
        assert again.record.recovered > 20
        _check(stream, limit)


def _check(stream: Stream, watermark: datetime) -> None:
    """No id is twice; all that is old enough and was read is there; windows are those of the lake."""
    ids = DeltaTable(str(stream.out / "events")).to_pyarrow_table(columns=["event_id"]).column(0).to_pylist()
    assert len(ids) == len(set(ids))
    old = {id_ for id_, time in stream.good.items() if time < watermark - DAY - timedelta(minutes=6)}
    assert old <= set(ids)
    expected: Counter[Any] = Counter()
    for row in (
        DeltaTable(str(stream.out / "events"))
        .to_pyarrow_table(columns=["event_time", "event_type"])
        .to_pylist()
    ):
        expected[row["event_time"].replace(second=0, microsecond=0), row["event_type"]] += 1
    found: Counter[Any] = Counter()
    table = DeltaTable(str(stream.out / "metrics" / "events_per_minute")).to_pyarrow_table()
    if stream.config.accumulation == "accumulating":
        rows = latest(stream.out, "events_per_minute")
    else:
        rows = table.to_pylist()
    for row in rows:
        found[row["window_start"], row["event_type"]] += row["events"] * (-1 if row.get("retraction") else 1)
    closed = watermark - timedelta(minutes=10)
    wrong = {
        k: (found[k], expected[k]) for k in found | expected if k[0] < closed and found[k] != expected[k]
    }
    assert not wrong


def test_young_rows_stay_until_no_copy_can_come(stream: Stream) -> None:
    stream.read_until(600)
    before = rows_of(stream.out, "quarantine")
    result = stream.replay(dry_run=True)
    assert rows_of(stream.out, "quarantine") == before
    assert result.record.selected == result.record.recovered + sum(result.record.waiting.values()) + sum(
        sum(reasons.values()) for reasons in result.record.failed.values()
    )
    with pytest.raises(ConfigError, match="--all-ages is for a stream that has come to the end"):
        stream.replay(all_ages=True)
