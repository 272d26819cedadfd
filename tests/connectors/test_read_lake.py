import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from headrace.connectors.delta_commit import commit_files, commit_parquet, ensure_table
from headrace.connectors.read_lake import Found, find_event
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import PARTITION, QUARANTINE_TABLE_SCHEMA, QuarantineWriter
from headrace.schemas.columns import ENRICHED_SCHEMA, MONEY, QUARANTINE_SCHEMA, TIME
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.batches import conform

NOON = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
IDS = [f"00000000-0000-4000-8000-00000000000{c}" for c in "abcd"]


def event_rows(positions, origin="logs/app:1.jsonl.gz"):
    rows = len(positions)
    columns = {
        "event_id": pa.array([IDS[i % 4] for i in range(rows)]),
        "event_time": pa.array([NOON] * rows, TIME),
        "event_date": pa.array([NOON.date()] * rows, pa.date32()),
        "origin": pa.array([origin] * rows),
        "origin_position": pa.array(positions, pa.int64()),
        "revenue": pa.array([Decimal("9.5")] + [None] * (rows - 1), MONEY),
    }
    return conform(columns, ENRICHED_SCHEMA, rows)


def reject_rows():
    columns = {
        "event_id": pa.array([IDS[0], None]),
        "ingest_time": pa.array([NOON] * 2, TIME),
        "origin": pa.array(["logs/app:1.jsonl.gz"] * 2),
        "origin_position": pa.array([5, 17]),
        "stage": pa.array(["deduplicate", "decode"]),
        "reason": pa.array(["duplicate", "not_json"]),
        "document": pa.array([None, b"sealed"]),
    }
    return conform(columns, QUARANTINE_SCHEMA, 2)


@pytest.fixture(params=["delta", "parquet"])
def out(request, tmp_path):
    plain = request.param == "parquet"
    lake, quarantine = tmp_path / "events", tmp_path / "quarantine"
    events = PartitionedWriter(
        tmp_path / "staging" if plain else lake, partition="event_date", name="1", rows_per_group=2
    )
    events.write(event_rows([1, 2, 3, 4]))
    rejects = QuarantineWriter(quarantine, "1")
    rejects.write(reject_rows())
    if plain:
        commit_parquet(tmp_path / "staging", lake, events.close())
    else:
        ensure_table(lake, ENRICHED_SCHEMA, ["event_date"])
        commit_files(
            lake, ENRICHED_SCHEMA, events.close(), app_id="r", version=0, partition_by=["event_date"]
        )
    ensure_table(quarantine, QUARANTINE_TABLE_SCHEMA, [PARTITION])
    commit_files(
        quarantine, QUARANTINE_TABLE_SCHEMA, rejects.close(), app_id="r", version=0, partition_by=[PARTITION]
    )
    return tmp_path


def test_an_event_is_found_in_both_tables(out):
    assert find_event(out, f" {IDS[0].upper()} ") == [
        Found(
            "events",
            {
                "event_id": IDS[0],
                "event_time": NOON,
                "origin": "logs/app:1.jsonl.gz",
                "origin_position": 1,
                "revenue": Decimal("9.500000000"),
                "event_date": dt.date(2026, 1, 5),
            },
        ),
        Found(
            "quarantine",
            {
                "event_id": IDS[0],
                "ingest_time": NOON,
                "origin": "logs/app:1.jsonl.gz",
                "origin_position": 5,
                "stage": "deduplicate",
                "reason": "duplicate",
                "ingest_date": dt.date(2026, 1, 5),
            },
        ),
    ]


def test_a_record_is_found_by_its_position(out):
    (found,) = find_event(out, "logs/app:1.jsonl.gz:17")
    assert found.table == "quarantine"
    assert found.columns["reason"] == "not_json"
    assert found.columns["document_bytes"] == 6
    assert "document" not in found.columns and "event_id" not in found.columns
    (found,) = find_event(out, "logs/app:1.jsonl.gz:4")
    assert (found.table, found.columns["event_id"]) == ("events", IDS[3])
    assert find_event(out, "app:1.jsonl.gz:4") == []
    assert find_event(out, "logs/app:1.jsonl.gz:5000") == []


@pytest.mark.parametrize("text", ["nothing", IDS[0][:-1], ":17", "logs/app:x", f"a:{2**63}", "' or 1=1 --"])
def test_what_is_not_there_is_not_found(out, text):
    assert find_event(out, text) == []


def test_files_that_no_commit_names_are_not_read(out):
    writer = PartitionedWriter(out / "events", partition="event_date", name="2")
    writer.write(event_rows([99], origin="late"))
    assert len(writer.close()) == 1
    assert find_event(out, "late:99") == []


def test_an_output_without_tables_is_named(tmp_path):
    with pytest.raises(ConfigError, match="events holds no committed table: the run has not finished"):
        find_event(tmp_path, IDS[0])
    with pytest.raises(ConfigError, match="does not exist; name the --output of a run"):
        find_event(tmp_path / "none", IDS[0])
    with pytest.raises(ConfigError, match="id is empty; give an id, or ORIGIN:POSITION"):
        find_event(tmp_path, "  ")


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"PAR1")])
def test_a_damaged_file_is_named(out, damage):
    path = out / "events" / "event_date=2026-01-05" / "part-1.parquet"
    damage(path)
    with pytest.raises(UntrustedRunError, match=r"part-1\.parquet of the committed table can't be read"):
        find_event(out, IDS[0])


def test_files_without_the_asked_columns_hold_no_match(tmp_path):
    schema = pa.schema([("event_date", pa.date32()), ("n", pa.int64())])
    for table in ("events", "quarantine"):
        writer = PartitionedWriter(tmp_path / "staging" / table, partition="event_date", name="1")
        writer.write(pa.record_batch([[NOON.date()], [1]], schema=schema))
        commit_parquet(tmp_path / "staging" / table, tmp_path / table, writer.close())
    assert find_event(tmp_path, IDS[0]) == []
