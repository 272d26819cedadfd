"""A small output of a run, made by the connectors: two events in the lake, two rejected rows."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from headrace.connectors.delta_commit import commit_files, ensure_table
from headrace.connectors.ledger import Ledger
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.summary import BatchResult
from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.failures import Failure
from headrace.transforms.batches import conform
from headrace.transforms.rejects import rejected

NOW = datetime(2024, 5, 17, 12, tzinfo=UTC)
FIRST = "00000000-0000-4000-8000-000000000001"
SECOND = "00000000-0000-4000-8000-000000000002"


def batch(schema: pa.Schema, **columns: list[object]) -> pa.RecordBatch:
    rows = len(next(iter(columns.values())))
    plain = {name: pa.array(values, _plain(schema.field(name).type)) for name, values in columns.items()}
    return conform(plain, schema, rows)


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def write_output(out: Path) -> None:
    """Line 1 and 2 are accepted, line 3 is invalid in two places, line 4 is stale."""
    events = batch(
        ENRICHED_SCHEMA,
        event_id=[FIRST, SECOND],
        event_time=[NOW, NOW],
        event_date=[NOW.date(), NOW.date()],
        ingest_time=[NOW, NOW],
        origin=["it's.jsonl", "it's.jsonl"],
        origin_position=[1, 2],
        event_type=["purchase", "click"],
        price=[Decimal("19.990000000"), None],
        properties=['{"colour":"[red]"}', None],
    )
    bad = batch(
        QUARANTINE_SCHEMA,
        ingest_time=[NOW, NOW],
        origin=["it's.jsonl", "it's.jsonl"],
        origin_position=[3, 4],
        event_time=[None, datetime(2024, 5, 10, 8, 30, 0, 500_000, UTC)],
    )
    failures = [Failure("type", "/price", "expected a number"), Failure("required", "", "user_id is missing")]
    lake = PartitionedWriter(out / "events", partition="event_date", name="0")
    lake.write(events)
    quarantine = QuarantineWriter(out / "quarantine", "0")
    quarantine.write(
        rejected(bad.slice(0, 1), "validate", "invalid", failures=[failures], documents=pa.array([b"sealed"]))
    )
    quarantine.write(rejected(bad.slice(1), "time", "stale", message="older than the limit"))
    for table, writer, schema, by in (
        ("events", lake, ENRICHED_SCHEMA, "event_date"),
        (
            "quarantine",
            quarantine,
            QUARANTINE_SCHEMA.append(pa.field("ingest_date", pa.date32())),
            "ingest_date",
        ),
    ):
        ensure_table(out / table, schema, [by])
        commit_files(out / table, schema, writer.close(), app_id="test", version=0, partition_by=[by])
    Ledger(4, 2, {"time": {"stale": 1}, "validate": {"invalid": 1}}).write(out / "ledger.json")


def result(output: Path, **changes: object) -> BatchResult:
    values: dict[str, object] = {
        "ledger": Ledger(4, 2, {"time": {"stale": 1}, "validate": {"invalid": 1}}),
        "output": output,
        "now": NOW,
        "now_given": False,
        "elapsed_seconds": 2.0,
        "already_done": False,
        "counts": {"enrich_country.country_unknown": 3, "enrich.profile_missing": 0},
        "top_event_types": [("purchase", 1), ("[click]", 1)],
        "revenue": [("EUR", Decimal("1234.560000000"))],
        "warnings": [],
    }
    return BatchResult(**{**values, **changes})  # type: ignore[arg-type]
