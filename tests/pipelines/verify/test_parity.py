import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from headrace.connectors.stream_ledger import StreamTotals
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.verify import parity
from headrace.pipelines.verify.comparison import TableComparison
from headrace.pipelines.verify.deliver import STALL_SECONDS, Deliverer
from headrace.pipelines.verify.disturb import Delivery, Disturbance
from headrace.pipelines.verify.input_records import InputRecords
from headrace.pipelines.verify.parity import prove_parity
from headrace.pipelines.verify.parity_report import ParityReport
from headrace.pipelines.verify.parity_settings import load_definition, proof_stream
from headrace.pipelines.verify.report import describe_parity
from headrace.schemas.errors import ConfigError, UntrustedRunError
from tests.pipelines.conftest import Simulated
from tests.pipelines.runs import event, lines
from tests.pipelines.verify.local_stream import run_stream_here

NOW = datetime(2026, 1, 5, 13, tzinfo=UTC)
PROOF: dict[str, Any] = {
    "metrics": dict.fromkeys(["events_per_minute", "events_10m", "top_products_1h", "order_values_1h"]),
    "allowed_lateness_seconds": 900,
    "shards": 2,
}
ONE: dict[str, Any] = {"metrics": {"events_per_minute": None}}


def prove(inputs: Path, work: Path, key: Path, *, seed: int = 3, **changes: Any) -> ParityReport:
    shared = {
        "key_file": str(key),
        "rules": {},
        **{n: changes.pop(n) for n in ("metrics", "mapping", "rules") if n in changes},
    }
    batch = BatchConfig(input=[str(inputs)], now=NOW, **shared)
    return prove_parity(batch, StreamConfig(**shared, **changes), seed=seed, work=work)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, warm: None) -> None:
    """Streams run in this process, without a runner, and get little at once."""
    monkeypatch.setattr(parity, "require_runner", lambda *arguments: None)
    monkeypatch.setattr(parity, "run_stream_apart", run_stream_here)
    monkeypatch.setattr(parity, "DELIVERIES", 3)


_PROOFS: list[tuple[Path, ParityReport]] = []


@pytest.fixture
def proof(
    here: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    small: Simulated,
    key: Path,
) -> tuple[Path, ParityReport]:
    """A proof over 240 records in which every verdict occurs, made once and kept in a folder."""
    monkeypatch.setattr(parity, "DELIVERIES", 5)
    if not _PROOFS:
        folder = tmp_path_factory.mktemp("proof") / "work"
        _PROOFS.append((folder, prove(small.path, folder, key, **PROOF)))
    return _PROOFS[0]


@pytest.fixture
def tampered(
    tmp_path: Path,
    proof: tuple[Path, ParityReport],
    small: Simulated,
    key: Path,
) -> Any:
    """Changes one of the outputs of a copy of the proof, and compares again."""

    def compared(change: Callable[[Path, Path], None]) -> ParityReport:
        work = tmp_path / "work"
        shutil.copytree(proof[0], work)
        change(work / "batch", work / "stream")
        return prove(small.path, work, key, **PROOF)

    return compared


def test_a_batch_and_a_disturbed_stream_leave_the_same(
    proof: tuple[Path, ParityReport], small: Simulated
) -> None:
    folder, report = proof
    assert report.equal, describe_parity(report)
    assert [table.name for table in report.found.tables] == [
        "events",
        "quarantine",
        *(f"metrics/{name}" for name in PROOF["metrics"]),
    ]
    rows = {table.name: table.rows_compared for table in report.found.tables}
    truth = small.truth["classes"]
    conflicts = report.found.conflicts
    assert conflicts == truth["conflict"] > 0
    assert rows["events"] == truth["accepted"] - conflicts
    assert rows["metrics/events_per_minute"] > 50 and rows["metrics/top_products_1h"] == 10
    assert report.records == 240 and report.sent == 240 + report.plan["copies"] > 250
    assert report.plan["shuffled"] > 100 and report.plan["delayed"] > 10
    fired = {timing for firings in report.found.firings.values() for timing in firings}
    assert fired == {"early", "on_time", "late", "final"}
    assert 0 < report.found.rejected["dedupe.duplicate"][0] <= truth["duplicate"]
    assert all(a == b for a, b in report.found.rejected.values())
    assert report.found.examples_of_conflicts[0].keys() == {"event_id", "batch", "stream"}
    left = {path.name for path in folder.iterdir()}
    assert left == {"batch", "stream", "stream.log", "parity.json"}, "records in clear were left"
    assert (folder / "stream.log").read_text() == "--runner=prism"


def differing(report: ParityReport) -> dict[str, TableComparison]:
    assert not report.equal and "No parity" in describe_parity(report)
    return {table.name: table for table in report.found.tables if not table.equal}


def test_lost_and_doubled_rows_and_windows_and_changed_measures_are_found(tampered: Any) -> None:
    def change(batch: Path, stream: Path) -> None:
        table = DeltaTable(str(stream / "events"))
        own, made = (
            table.to_pyarrow_table(filters=[("id_generated", "=", generated)]) for generated in (False, True)
        )
        table.delete(f"event_id = '{own['event_id'][0].as_py()}'")
        write_deltalake(str(stream / "events"), made.slice(0, 1), mode="append")
        place = batch / "metrics" / "events_per_minute" / "part-0.parquet"
        minutes = pq.read_table(place, partitioning=None)
        minutes = minutes.slice(0, minutes.num_rows - 1)
        counts = pa.array([minutes["events"][0].as_py() + 1, *minutes["events"].to_pylist()[1:]])
        at = minutes.schema.get_field_index("events")
        pq.write_table(minutes.set_column(at, "events", counts), place)

    events, windows = differing(tampered(change)).values()
    assert (events.name, events.only_in_a, events.only_in_b, events.repeated_keys_b) == ("events", 1, 1, 1)
    assert events.rows_differing == 0
    assert str(events.examples_only_in_b[0]["event"]).startswith("events.jsonl:")
    assert (windows.name, windows.only_in_b, windows.rows_differing) == ("metrics/events_per_minute", 1, 1)
    assert windows.columns["events"].largest_absolute == 1


def test_changed_fields_and_verdicts_late_rows_and_open_windows_are_found(tampered: Any) -> None:
    def change(batch: Path, stream: Path) -> None:
        DeltaTable(str(stream / "events")).update(
            updates={"country": "'ZZ'"}, predicate="country IS NOT NULL"
        )
        DeltaTable(str(stream / "quarantine")).update(
            updates={"reason": "'other'", "document": "CAST('x' AS BYTEA)"}, predicate="reason = 'stale'"
        )
        DeltaTable(str(stream / "metrics" / "order_values_1h")).update(updates={"is_final": "false"})
        DeltaTable(str(batch / "quarantine")).update(
            updates={"reason": "'duplicate'"}, predicate="reason = 'duplicate_conflict'"
        )
        late = pa.table({"window_start": [NOW], "window_end": [NOW], "rows": [2]})
        write_deltalake(str(stream / "late" / "events_10m"), late)

    report = tampered(change)
    events, quarantine = differing(report).values()
    assert set(events.columns) == {"country"} and events.columns["country"].cells == events.rows_differing > 0
    assert quarantine.name == "quarantine" and set(quarantine.columns) == {"reason", "document"}
    assert report.found.rejected["time.other"] == (0, report.found.rejected["time.stale"][0])
    shown = {example["b"] for example in quarantine.columns["document"].examples}
    assert shown == {"(1 bytes)"}, "a document was shown"
    assert report.found.late == {"events_10m": 2} and report.found.unfinished["order_values_1h"] > 0
    assert "metrics/events_10m  DIFFERENT  2 rows came too late" in describe_parity(report)
    assert report.found.one_sided_conflicts == report.found.conflicts > 0
    equal = replace(
        report.found, tables=report.found.tables[2:], late={}, unfinished={}, one_sided_conflicts=0
    )
    assert equal.equal
    assert not replace(equal, late=report.found.late).equal, "late rows are no parity by themselves"
    assert not replace(equal, unfinished=report.found.unfinished).equal
    assert not replace(equal, one_sided_conflicts=1).equal


def test_another_definition_of_a_metric_in_the_stream_is_found(
    here: None, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "e.jsonl"
    source.write_bytes(lines(event(i) for i in range(40)))
    mine = {"size_seconds": 60, "measures": {"n": "count", "users": {"distinct": "user_id"}}}
    other = {"size_seconds": 60, "measures": {"n": "count", "users": {"distinct": "event_id"}}}

    def changed(config: StreamConfig, *arguments: Any, **named: Any) -> None:
        run_stream_here(replace(config, metrics={"mine": other}), *arguments, **named)

    monkeypatch.setattr(parity, "run_stream_apart", changed)
    (table,) = differing(prove(source, tmp_path / "other", key, metrics={"mine": mine})).values()
    assert (table.name, set(table.columns)) == ("metrics/mine", {"users"})


def test_windows_that_take_rows_back_and_tables_without_rows(here: None, tmp_path: Path, key: Path) -> None:
    source = tmp_path / "e.jsonl"
    source.write_bytes(lines(event(i, event_type=("click", "search")[i % 2]) for i in range(90)))
    own = {"size_seconds": 300, "every_seconds": 100, "by": ["event_type"], "measures": {"n": "count"}}
    metrics = {"own": {**own, "top": {"k": 1, "measure": "n"}}, "revenue_per_minute": None}
    report = prove(source, tmp_path / "work", key, metrics=metrics, accumulation="retracting")
    assert report.equal, describe_parity(report)
    assert report.found.missing == ["metrics/revenue_per_minute in the stream"]


def test_records_that_are_no_lines_are_sent_as_documents(here: None, tmp_path: Path, key: Path) -> None:
    """A table and CSV with a mapping, with a record that can't be read."""
    records = [{"id": event(i)["event_id"], "at": event(i)["timestamp"], "who": f"u{i}"} for i in range(30)]
    folder = tmp_path / "in"
    folder.mkdir()
    text = "".join(f"{r['id']},{r['at']},{r['who']}\n" for r in records[:20])
    (folder / "a.csv").write_text("id,at,who\n" + text + "only,two\n")
    pq.write_table(pa.Table.from_pylist(records[10:]), folder / "b.parquet")
    mapping = {
        "metadata.event_id": "id", "metadata.timestamp": "at", "user.id": "who", "payload.event_type": {"value": "visit"},
    }  # fmt: skip
    report = prove(folder, tmp_path / "work", key, mapping=mapping, **ONE)
    assert report.equal, describe_parity(report)
    assert (report.records, report.unreadable) == (40, 1)
    assert report.found.rejected == {"dedupe.duplicate": (10, 10)}
    assert "1 more records of the files, which can't be sent" in describe_parity(report)


def test_a_proof_that_is_done_is_not_run_again_and_another_is_refused(
    here: None,
    monkeypatch: pytest.MonkeyPatch,
    proof: tuple[Path, ParityReport],
    small: Simulated,
    key: Path,
    tmp_path: Path,
) -> None:
    folder, report = proof
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="another proof: its plan differs"):
        patch.setattr(parity, "DELIVERIES", 4)
        prove(small.path, folder, key, **PROOF)
    again = prove(small.path, folder, key, **PROOF)
    assert again.equal and again.plan == report.plan
    with pytest.raises(
        ConfigError, match="holds another proof: its seed differs; name another --work, or delete it"
    ):
        prove(small.path, folder, key, **PROOF, seed=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no proof; name another --work"):
        prove(small.path, tmp_path / "full", key)


def test_a_stream_that_was_broken_off_is_run_anew_also_of_lines_that_are_hard_to_send(
    here: None, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte order marks, carriage returns, blank lines, bytes that are no text, a last line without an end."""
    mark = b"\xef\xbb\xbf"
    hard = [mark + b"x", b"y\r", b"\xff\xfe", b"", b"  ", b'{"a":', mark + lines([event(1)]).strip()]
    source, work = tmp_path / "e.jsonl", tmp_path / "work"
    source.write_bytes(
        mark + lines([event(0)]) + b"\n".join(hard * 3) + b"\r\r\n" + lines([event(2)]).strip()
    )

    def broken(config: StreamConfig, *arguments: Any, **named: Any) -> None:
        Path(config.output).mkdir()
        raise UntrustedRunError("the stream ended with exit code 3: no")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UntrustedRunError, match=r"no\. What the runs left is in .*work"),
    ):
        patch.setattr(parity, "run_stream_apart", broken)
        prove(source, work, key, **ONE)
    assert not (work / "incoming").exists() and not (work / "records").exists()
    report = prove(source, work, key, **ONE)
    assert report.equal, describe_parity(report)
    assert report.records == 2 + 5 * 3 and report.unreadable == 0


def test_a_runner_that_runs_no_streams_is_refused_before_anything_runs(
    small: Simulated, tmp_path: Path, key: Path
) -> None:
    batch = BatchConfig(input=[str(small.path)], now=NOW, key_file=str(key), rules={}, **ONE)
    stream = StreamConfig(key_file=str(key), rules={}, **ONE)
    for runner, message in (("direct", "it can't run streams"), ("flink", "job_endpoint")):
        with pytest.raises(ConfigError, match=message):
            prove_parity(batch, stream, seed=1, work=tmp_path / "work", runner=runner)
    assert not (tmp_path / "work").exists()


def test_nothing_accepted_is_no_proof(here: None, tmp_path: Path, key: Path) -> None:
    source = tmp_path / "e.jsonl"
    source.write_bytes(b"no event\n")
    with pytest.raises(ConfigError, match="has accepted none of the records, so there is nothing to prove"):
        prove(source, tmp_path / "work", key, **ONE)


def test_a_stream_is_of_one_kind(tmp_path: Path, key: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "e.jsonl").write_bytes(lines([event(1)]))
    (tmp_path / "in" / "access.log").write_text(
        '1.2.3.4 - - [05/Jan/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 1\n'
    )
    with pytest.raises(ConfigError, match=r"access\.log is a web log, other files are not"):
        prove(tmp_path / "in", tmp_path / "work", key)


def test_a_configuration_of_either_kind_becomes_both(tmp_path: Path) -> None:
    (tmp_path / "stream.yaml").write_text(
        "source: dir:x\nreaders: 3\nmax_age_seconds: 7\nmetrics: {geography_1h: }\n"
    )
    (tmp_path / "batch.yaml").write_text("input: [y]\nsplit_bytes: 2048\nmax_age_seconds: 7\n")
    (tmp_path / "neither.yaml").write_text("readers: 3\nsplit_bytes: 2048\n")
    batch, stream = load_definition(
        tmp_path / "stream.yaml", {"input": ["a"], "now": "2026-01-05T13:00:00Z", "format": None}
    )
    assert (stream.readers, stream.max_age_seconds, stream.metrics) == (3, 7, {"geography_1h": None})
    assert (batch.max_age_seconds, batch.metrics, batch.input, batch.now) == (
        7,
        {"geography_1h": None},
        ["a"],
        NOW,
    )
    batch, stream = load_definition(tmp_path / "batch.yaml", {"key_file": "k"})
    assert (batch.input, batch.split_bytes, batch.key_file, stream.key_file) == (["y"], 2048, "k", "k")
    assert stream == StreamConfig(max_age_seconds=7, key_file="k")
    with pytest.raises(ConfigError, match="unknown setting"):
        load_definition(tmp_path / "neither.yaml")
    (tmp_path / "bad.yaml").write_text("readers: 0\n")
    with pytest.raises(ConfigError, match="readers is 0"):
        load_definition(tmp_path / "bad.yaml")
    (tmp_path / "cut.yaml").write_text("accumulation: discarding\n")
    with pytest.raises(ConfigError, match="prove the definition with 'accumulating'"):
        load_definition(tmp_path / "cut.yaml")


def test_the_stream_of_a_proof_sends_nothing_anywhere_and_forgets_nothing(tmp_path: Path) -> None:
    config = StreamConfig(
        source="kafka://h:1/t", sink=["kafka://h:1/s"], quarantine_sink="kafka://h:1/q", until="now", max_events=5,
        dedupe_seconds=60, idle_seconds=1, allowed_lateness_seconds=7, mapping={"price": "p"},
    )  # fmt: skip
    more: dict[str, Any] = {
        "incoming": tmp_path / "a b?",
        "output": tmp_path / "o",
        "now": NOW,
        "format": "jsonl",
    }
    made = proof_stream(config, **more, mapped=False, delivery_rows=8000)
    assert made.source.endswith("a%20b%3F?format=jsonl&ingest_time=2026-01-05T13:00:00Z")
    assert (made.sink, made.quarantine_sink, made.until, made.max_events) == ([], None, None, None)
    assert (made.dedupe_seconds, made.idle_seconds, made.allowed_lateness_seconds) == (86_400, 604_800, 7)
    assert (made.poll_rows, made.mapping) == (2000, {"price": "p"})
    assert proof_stream(config, **more, mapped=True, delivery_rows=1).mapping == {}


def test_deliveries_wait_for_the_stream(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "records").write_bytes(b"abbccc")
    records = InputRecords(
        tmp_path / "records", np.array([1, 3, 6]), pa.chunked_array([["o"] * 3]), np.array([1, 2, 3]), 0
    )
    order, copy = np.array([2, 0, 1, 0]), np.array([0, 0, 0, 1], np.int32)
    plan = Disturbance(order, copy, [Delivery(0, 0, 1), Delivery(1, 1, 2), Delivery(1, 2, 4)], 0, 0, 0, 1, 1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "stream.json").write_text(json.dumps({"jobs": [{"name": "s1"}, {"name": "s2"}]}))
    now = [0.0]
    deliver = Deliverer(records, plan, tmp_path / "in", out, "jsonl", clock=lambda: now[0])

    def there() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "in").iterdir())}

    deliver.deliver()
    deliver(StreamTotals())
    assert there() == {"part-0000.jsonl": b"ccc\n"}
    deliver(StreamTotals(rows_in=1))
    assert there() == {"part-0000.jsonl": b"ccc\n", "part-0001.jsonl": b"a\n"}
    deliver(StreamTotals(rows_in=1))
    deliver(StreamTotals(rows_in=2))
    assert there()["part-0001.jsonl"] == b"a\nbb\na\n"
    with pytest.raises(UntrustedRunError, match="counts 5 records, and only 4 were delivered"):
        deliver(StreamTotals(rows_in=5))
    now[0] = STALL_SECONDS + 1
    with pytest.raises(UntrustedRunError, match="has stood at 2 of 4 delivered records"):
        deliver(StreamTotals(rows_in=2))
    assert not (out / "_control").exists()
    for _ in range(2):
        deliver(StreamTotals(rows_in=4))
    assert [path.name for path in (out / "_control" / "s2").iterdir()] == ["finish"]
