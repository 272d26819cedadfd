import json
import shutil
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from headrace.connectors.write_metrics import write_metrics
from headrace.pipelines.cli import app
from headrace.pipelines.verify import parity
from headrace.pipelines.verify.known_tables import FIRING, counted_rows
from headrace.pipelines.verify.stored_tables import open_database
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.window_rows import latest_rows
from tests.pipelines.runs import event, lines
from tests.pipelines.small_output import FIRST, write_output
from tests.pipelines.verify.local_stream import run_stream_here

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def run(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, args)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def counts(rows: dict[str, int]) -> pa.Table:
    """A window table of one minute by event type."""
    return pa.table(
        {
            "window_start": pa.array([NOON] * len(rows), pa.timestamp("us", "UTC")),
            "window_end": pa.array([NOON + MINUTE] * len(rows), pa.timestamp("us", "UTC")),
            "event_type": pa.array(list(rows), pa.string()),
            "events": list(rows.values()),
        }
    )


def fired(rows: dict[str, int], pane: int, timing: str, shard: int = 0, **more: Any) -> pa.Table:
    """The same as one firing of a stream."""
    table = counts(rows)
    columns = {
        "pane_index": pane,
        "timing": timing,
        "is_final": timing == "final",
        "fired_at": NOON,
        "window_shard": shard,
    }
    for name, value in {**columns, **more}.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), table.num_rows))
    return table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small output, and a copy of it as a stream would leave it."""
    folder = tmp_path_factory.mktemp("outputs")
    a, b = folder / "batch", folder / "stream"
    write_output(a)
    shutil.copytree(a, b)
    write_metrics(a / "metrics", "events_per_minute", counts({"click": 3, "search": 1}))
    write_metrics(a / "metrics", "top_products_1h", counts({}))
    panes = [
        fired({"click": 1}, 0, "early"),
        fired({"click": 2}, 1, "on_time"),
        fired({"click": 3}, 2, "final"),
    ]
    for table in [*panes, fired({"search": 1}, 0, "final", shard=1)]:
        write_deltalake(str(b / "metrics" / "events_per_minute"), table, mode="append")
    write_deltalake(str(b / "ledger"), pa.table({"number": [1]}))
    (b / "stream.json").write_text(json.dumps({"jobs": [{"configuration": {}}]}))
    return a, b


@pytest.fixture
def outputs(tmp_path: Path, made: tuple[Path, Path]) -> tuple[Path, Path]:
    """Copies that may be changed."""
    for source in made:
        shutil.copytree(source, tmp_path / source.name)
    return tmp_path / "batch", tmp_path / "stream"


def test_equal_outputs_of_a_batch_and_a_stream(made: tuple[Path, Path]) -> None:
    code, text, _ = run("compare", *made)
    assert code == 0, text
    assert text.splitlines() == [
        f"A  {made[0]}",
        f"B  {made[1]}",
        "",
        "events                     equal      2 rows",
        "metrics/events_per_minute  equal      2 rows",
        "quarantine                 equal      2 rows",
        "  rows counted by stage, reason, schema",
        "metrics/top_products_1h  only in A: B has no such table (no difference, as it has no rows)",
        "ledger  not compared: a run's own books",
        "",
        "Equal: 4 tables",
    ]


def test_differences_are_shown_and_end_with_1(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = outputs
    events = DeltaTable(str(b / "events"))
    events.update(
        updates={"price": "CAST(19.5 AS DECIMAL(38, 9))", "origin": "'x'"}, predicate=f"event_id = '{FIRST}'"
    )
    DeltaTable(str(b / "quarantine")).delete("reason = 'stale'")
    write_metrics(a / "metrics", "events_per_minute", counts({"click": 4, "view": 1}))
    write_metrics(a / "metrics", "own", counts({"click": 1}))
    report = tmp_path / "report.json"
    code, text, _ = run("compare", a, b, "--report", report)
    assert code == 1
    for said in (
        "events                     DIFFERENT  2 rows",
        "  price: 1 cell differs, by 0.49 at most (2.45 %)",
        f"      event_id={FIRST}: A 19.990000000, B 19.500000000",
        "  not compared: ingest_time, origin, origin_position",
        "  key: window_start, window_end, event_type",
        "  only in A: 1 row",
        "      window_start=2026-01-05 12:00:00 window_end=2026-01-05 12:01:00 event_type=view",
        "quarantine                 DIFFERENT  2 rows in A, 1 in B",
        "      stage=time reason=stale schema=null",
        "metrics/own  only in A: B has no such table (1 row)",
        "Different: 4 of 5 tables",
    ):
        assert f"{said}\n" in text, said
    found = json.loads(report.read_text())
    assert (found["equal"], found["only_in_a"]) == (False, {"metrics/own": 1, "metrics/top_products_1h": 0})
    assert {table["name"]: table["equal"] for table in found["tables"]} == {
        "events": False,
        "metrics/events_per_minute": False,
        "quarantine": False,
    }
    assert run("compare", a, b, "--table", "events", "--tolerance", "price=0.49")[0] == 0
    assert run("compare", a, b, "--table", "events", "--tolerance", "price=2%")[0] == 1
    assert run("compare", a, b, "--table", "events", "--ignore", "price")[0] == 0
    code, text, _ = run("compare", a, b, "--table", "events", "--json")
    assert code == 1 and json.loads(text)["tables"][0]["columns"]["price"]["cells"] == 1


def test_a_quarantine_is_compared_by_rows_if_keys_are_given_but_never_shown(
    outputs: tuple[Path, Path],
) -> None:
    a, b = outputs
    DeltaTable(str(b / "quarantine")).update(
        updates={"document": "CAST('other' AS BYTEA)"}, predicate="document IS NOT NULL"
    )
    keys = ("--key", "origin", "--key", "origin_position", "--table", "quarantine")
    assert run("compare", a, b)[0] == 0
    code, text, _ = run("compare", a, b, *keys)
    assert code == 1 and "origin=it's.jsonl origin_position=3: A (6 bytes), B (5 bytes)" in text
    assert "sealed" not in text and "other" not in text


def test_of_a_stream_only_the_rows_that_count_are_compared(tmp_path: Path) -> None:
    firings = [
        fired({"a": 1, "b": 1}, 0, "early"),
        fired({"a": 2, "b": 1}, 1, "final"),
        fired({"c": 5}, 0, "on_time", shard=1),
    ]
    table = pa.concat_tables(firings)
    signed = pa.concat_tables(
        [
            fired({"a": 1}, 0, "early", retraction=False),
            fired({"a": 1}, 1, "late", retraction=True),
            fired({"a": 2}, 1, "late", retraction=False),
            fired({"a": 2}, 2, "final", retraction=True),
            fired({"a": 2}, 2, "final", retraction=False),
        ]
    )
    with open_database() as connection:
        for name, rows in (("plain", table), ("signed", signed), ("batch", counts({"a": 1}))):
            connection.register(name, rows)
        assert counted_rows(connection, "p", "plain") == ("1 windows and shards are not final",)
        assert counted_rows(connection, "s", "signed") == counted_rows(connection, "x", "batch") == ()
        found = sorted(connection.execute("SELECT event_type, events FROM p").fetchall())
        expected = latest_rows(table).drop(list(FIRING[:-1]))
        assert found == sorted(
            zip(*expected.select(["event_type", "events"]).to_pydict().values(), strict=True)
        )
        assert connection.execute("SELECT * EXCLUDE (window_start, window_end) FROM s").fetchall() == [
            ("a", 2)
        ]
        assert [d[0] for d in connection.execute("FROM p").description or ()] == expected.column_names


def test_windows_of_parts_are_refused(outputs: tuple[Path, Path]) -> None:
    a, b = outputs
    (b / "stream.json").write_text(json.dumps({"jobs": [{"configuration": {"accumulation": "discarding"}}]}))
    code, _, error = run("compare", a, b)
    assert code == 2 and "no row has a whole window; name the other tables with --table" in error
    assert run("compare", a, b, "--table", "events")[0] == 0


def test_late_rows_are_compared_by_window(tmp_path: Path) -> None:
    for side, numbers in (("a", [1, 2]), ("b", [3])):
        late = pa.table(
            {"window_start": [NOON] * len(numbers), "window_end": [NOON] * len(numbers), "rows": numbers}
        )
        write_deltalake(str(tmp_path / side / "late" / "m"), late)
    assert run("compare", tmp_path / "a", tmp_path / "b")[0] == 0
    write_deltalake(str(tmp_path / "b" / "late" / "m"), late, mode="append")
    code, text, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 1 and "rows: 1 cell differs, by 3 at most (50 %)" in text


def test_single_tables_of_another_pipeline(tmp_path: Path) -> None:
    day = {"day": ["2026-01-05", "2026-01-06"], "mail": ["ada@example.org", "bob@example.org"], "n": [1, 2]}
    write_deltalake(str(tmp_path / "old" / "daily"), pa.table({**day, "cost": [1.0, 2.0]}))
    new = {**day, "mail": ["ada@example.org", "eve@example.org"], "cost": [Decimal("1.004"), Decimal("2")]}
    (tmp_path / "new").mkdir()
    pq.write_table(pa.table(new), tmp_path / "new" / "daily.parquet")
    sides = (tmp_path / "old" / "daily", tmp_path / "new" / "daily.parquet")
    code, text, _ = run("compare", *sides, "--key", "day", "--tolerance", "cost=0.005")
    assert code == 1 and "cost: 1 cell within the tolerance\n" in text
    assert "day=2026-01-06: A (15 characters, not shown), B (15 characters, not shown)" in text
    assert "example.org" not in text
    assert (
        "day=2026-01-06: A bob@example.org, B eve@example.org"
        in run("compare", *sides, "--key", "day", "--show-text")[1]
    )
    code, text, _ = run("compare", *sides)
    assert (
        code == 1 and "daily  DIFFERENT  2 rows\n  only in A: 2 rows\n" in text and "example.org" not in text
    )
    assert run("compare", *sides, "--ignore", "mail", "--ignore", "cost")[0] == 0


def test_events_of_another_pipeline_have_their_ids_as_keys(tmp_path: Path) -> None:
    for side, kinds in (("a", ["x", "y"]), ("b", ["z", "x"])):
        ids = ["1", "2"] if side == "a" else ["2", "1"]
        write_deltalake(str(tmp_path / side / "events"), pa.table({"event_id": ids, "kind": kinds}))
    code, text, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 1 and "kind: 1 cell differs\n      event_id=2: A (1 characters, not shown)" in text
    code, _, error = run("compare", tmp_path / "a", tmp_path / "b", "--key", "origin")
    assert code == 2 and "the tables have no column 'origin'" in error


def test_columns_to_ignore_are_no_part_of_keys_that_are_known(outputs: tuple[Path, Path]) -> None:
    a, b = outputs
    DeltaTable(str(b / "quarantine")).update(updates={"schema": "'other/1'"}, predicate="reason = 'stale'")
    DeltaTable(str(b / "events")).update(updates={"event_id": "'x'"}, predicate=f"event_id = '{FIRST}'")
    for table, column in (("quarantine", "schema"), ("events", "event_id")):
        assert run("compare", a, b, "--table", table)[0] == 1
        code, text, _ = run("compare", a, b, "--table", table, "--ignore", column)
        assert code == 0, text
    DeltaTable(str(b / "quarantine")).delete("reason = 'stale'")
    counted = ["--ignore", "stage", "--ignore", "reason", "--ignore", "schema"]
    code, text, _ = run("compare", a, b, "--table", "quarantine", *counted)
    assert code == 1 and "  only in A: 1 row\n      rows=2\n" in text and "  rows counted\n" in text


def test_nightly_tables_have_their_own_keys(tmp_path: Path) -> None:
    day = pa.array([date(2026, 1, 5)] * 2, pa.date32())
    for side, events in (("a", [3, 4]), ("b", [5, 3])):
        users = ["ada", "bob"] if side == "a" else ["bob", "ada"]
        rows = pa.table({"date": day, "user_id": users, "events": events})
        write_deltalake(str(tmp_path / side / "user_daily_metrics"), rows, partition_by=["date"])
        first = pa.table({"date": day, "user_id": users})
        write_deltalake(str(tmp_path / side / "user_first_seen"), first, partition_by=["date"])
    sides = (tmp_path / "a", tmp_path / "b")
    code, text, _ = run("compare", *sides)
    assert code == 1 and "user_first_seen     equal" in text
    assert (
        "events: 1 cell differs, by 1 at most (20 %)\n      date=2026-01-05 user_id=bob: A 4, B 5\n" in text
    )
    assert run("compare", *sides, "--tolerance", "events=1")[0] == 0
    assert run("compare", sides[0] / "user_daily_metrics", sides[1] / "user_daily_metrics")[1].count(
        "user_id=bob"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none"], "none does not exist; name an output, a lake, a table or a Parquet file"),
        (["stream/events"], "is one table, "), (["empty"], "holds none"),
        (["stream", "--key", "evnt_id"], "the tables have no column 'evnt_id'; did you mean 'event_id'?"),
        (["stream", "--ignore", "orgin"], "the tables have no column 'orgin'; did you mean 'origin'?"),
        (["stream", "--tolerance", "price"], "--tolerance price: name the column and the bound, for example revenue=0.01"),
        (["stream", "--tolerance", "price=x"], "tolerance 'x' is no number"),
        (["stream", "--tolerance", "price=1", "--tolerance", "price=2"], "--tolerance: price is given twice"),
        (["stream", "--tolerance", "event_type=1", "--table", "events"], "'event_type' is VARCHAR; only numbers have a tolerance"),
        (["stream", "--table", "event"], "have no table 'event'; did you mean 'events'?"),
        (["stream", "--tolerance", "price=-1"], "tolerance '-1' is no number from 0 up"),
        (["stream", "--table", "ledger"], "table ledger of a stream has its own books"),
        (["stream", "--key", "event_id", "--ignore", "event_id"], "column 'event_id' is part of the key and is to be ignored"),
        (["stream", "--report", "no/folder/r.json"], "--report no/folder/r.json: folder "),
        (["stream", "--report", "empty"], "--report empty is a folder; name a file"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused(
    args: list[str], message: str, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made[0].parent)
    Path("empty").mkdir(exist_ok=True)
    first = "stream/events" if args == ["empty"] else "batch"
    code, text, error = run("compare", first, *args)
    assert (code, text) == (2, "") and message in error, error


def test_folders_without_tables_are_wrong_use(tmp_path: Path) -> None:
    code, _, error = run("compare", tmp_path, tmp_path)
    assert code == 2 and "hold no tables: no Delta table and no Parquet file lies below them" in error


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "e.jsonl"
    path.write_bytes(lines(event(i) for i in range(20)))
    (tmp_path / "c.yaml").write_text("readers: 1\nmetrics: {events_per_minute: }\n")
    return path


def prove(source: Path, key: Path, *args: object) -> tuple[int, str, str]:
    config = source.with_name("c.yaml")
    now = "2026-01-05T13:00:00Z"
    return run("parity", "--input", source, "--now", now, "--config", config, "--key-file", key, *args)


def test_parity_reports_runs_and_ends_with_0_or_1(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    monkeypatch.setattr(parity, "require_runner", lambda *arguments: None)
    monkeypatch.setattr(parity, "run_stream_apart", run_stream_here)
    monkeypatch.setattr(parity, "DELIVERIES", 2)
    work, report = tmp_path / "work", tmp_path / "report.json"
    given = ("--seed", "4", "--work", work, "--report", report, "--runner", "flink", "--parallelism=2")
    code, text, error = prove(source, key, *given)
    assert code == 0, text + error
    assert text.splitlines()[0] == "20 records as a batch and, disturbed, as a stream on flink (seed 4)"
    assert "events                     equal      20 rows\n" in text and "\nParity (batch " in text
    assert "running the stream: " in error
    assert (work / "stream.log").read_text() == "--runner=flink --parallelism=2"
    found = json.loads(report.read_text())
    assert (found["equal"], found["records"], found["seed"], found["now"]) == (
        True,
        20,
        4,
        "2026-01-05T13:00:00Z",
    )
    DeltaTable(str(work / "stream" / "events")).delete("origin = 'part-0000.jsonl' AND origin_position = 1")
    code, text, error = prove(source, key, *given, "--json", "--quiet")
    found = json.loads(text)
    assert (code, found["equal"], error) == (1, False, "")
    assert [(t["name"], t["only_in_a"]) for t in found["tables"] if not t["equal"]] == [("events", 1)]


def test_a_temporary_folder_is_left_only_for_what_is_to_be_looked_at(
    source: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise UntrustedRunError("the stream ended with exit code 3: no")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(parity, "DELIVERIES", 2)
    monkeypatch.setattr(parity, "require_runner", lambda *arguments: None)
    monkeypatch.setattr(parity, "run_stream_apart", run_stream_here)
    assert prove(source, key, "--quiet")[0] == 0
    assert not list((tmp_path / "temporary").iterdir())
    monkeypatch.setattr(parity, "run_stream_apart", broken)
    code, _, error = prove(source, key, "--quiet")
    (left,) = (tmp_path / "temporary").iterdir()
    assert code == 3 and f"exit code 3: no. What the runs left is in {left}" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sed", "1"], "unknown option --sed; did you mean '--seed'?"),
        (["--input", "none.jsonl"], "none.jsonl does not exist"),
        (["--format", "xml"], "text 'xml' is not possible"),
        (["--config", "none.yaml"], "configuration none.yaml can't be read"),
        ([], "no input: name files with --input PATTERN"),
    ],
)
def test_wrong_use_of_parity_is_refused(args: list[str], message: str) -> None:
    code, text, error = run("parity", "--quiet", *args)
    assert (code, text) == (2, "") and message in error, error


def test_the_help_shows_examples() -> None:
    for command in ([], ["compare"], ["parity"]):
        code, text, _ = run(*command, "--help")
        assert code == 0 and "headrace verify compare old-lake new-lake" in text
