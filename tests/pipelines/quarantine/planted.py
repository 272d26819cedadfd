"""Outputs with a day of traffic and uniform rejections, into which patterns can be planted."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pyarrow as pa

from headrace.connectors.delta_commit import commit_files, commit_parquet, ensure_table, plain_schema
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QUARANTINE_TABLE_SCHEMA, QuarantineWriter
from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.failures import Failure
from headrace.transforms.batches import conform
from headrace.transforms.keys import Key

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)
STAGES_AFTER_MASK = ("dedupe", "rules", "filter")
Row = dict[str, Any]

_SCHEMAS = (("envelope:1.0.0", 5), ("commerce:1.0.0", 3), ("clickstream:1.0.0", 2))
_SOURCES = (
    ("web-sdk", "2026.1.3", "desktop", 6),
    ("android-app", "4.7.0", "mobile", 3),
    ("ios-app", "4.8.1", "mobile", 1),
)
_WRONG_ID = [Failure("type", "/user/id", "expected string, found number")]
_REASONS: tuple[tuple[str, str, list[Failure]], ...] = (
    (
        "decode",
        "malformed_json",
        [Failure("malformed_json", "", "not JSON at column 17: unexpected end of data")],
    ),
    ("validate", "type", _WRONG_ID),
    ("validate", "required", [Failure("required", "", 'property "user_id" is missing')]),
    ("time", "stale", []),
    ("dedupe", "duplicate", []),
)


def traffic(seed: int = 1, events: int = 6000, rejected: float = 0.05) -> tuple[list[Row], list[Row]]:
    """Returns accepted events and rejects of a day, everything spread evenly."""
    rng = Random(seed)
    lake: list[Row] = []
    quarantine: list[Row] = []
    for n in range(events):
        row = event(rng, START + DAY * (n / events), n)
        if rng.random() < rejected:
            stage, reason, failures = _REASONS[rng.randrange(len(_REASONS))]
            quarantine.append(reject(row, stage, reason, failures))
        else:
            lake.append(row)
    return lake, quarantine


def event(rng: Random, at: datetime, n: int, **changes: Any) -> Row:
    source, version, device, _ = rng.choices(_SOURCES, [s[-1] for s in _SOURCES])[0]
    schema = rng.choices(_SCHEMAS, [w for _, w in _SCHEMAS])[0][0]
    return {
        "event_id": f"00000000-0000-4000-8000-{n:012d}",
        "event_time": at,
        "event_date": at.date(),
        "ingest_time": at,
        "schema": schema,
        "source": source,
        "app_version": version,
        "device_type": device,
        "origin": f"events/{n % 3}",
        "origin_position": n,
        "event_type": "click",
        **changes,
    }


def reject(row: Row, stage: str, reason: str, failures: Sequence[Failure] = (), **changes: Any) -> Row:
    """Returns an event as the stage rejects it: those before the time stage know only where it was read, and its schema."""
    kept = dict(row)
    if stage in ("decode", "validate"):
        kept = {n: row[n] for n in ("ingest_time", "origin", "origin_position")}
        kept |= {"schema": row["schema"]} if stage == "validate" else {}
    kept |= {"stage": stage, "reason": reason, "attempt": 1}
    if failures:
        kept |= {"pointer": failures[0]["pointer"], "message": failures[0]["message"]}
        kept["errors"] = orjson.dumps(list(failures)).decode()
    return kept | changes


def sealed(key: Key, rows: Sequence[Row], documents: Sequence[bytes]) -> list[Row]:
    """Returns the rows with their sealed documents."""
    return [{**r, "document": d} for r, d in zip(rows, key.seal(documents).to_pylist(), strict=True)]


def write_output(out: Path, lake: Sequence[Row], quarantine: Sequence[Row], *, plain: bool = False) -> Path:
    """Writes an output of Delta tables, or of plain folders; two files of rejects if there are two rows."""
    events = PartitionedWriter(
        (out / "staging" / "events") if plain else (out / "events"), partition="event_date", name="0"
    )
    if lake:
        events.write(_batch(ENRICHED_SCHEMA, lake))
    files = []
    root = (out / "staging" / "quarantine") if plain else (out / "quarantine")
    half = (len(quarantine) + 1) // 2
    for n, rows in enumerate((quarantine[:half], quarantine[half:])):
        if rows:
            writer = QuarantineWriter(root, str(n), masked_stages=STAGES_AFTER_MASK)
            writer.write(_batch(QUARANTINE_SCHEMA, rows))
            files += writer.close()
    tables = (
        ("events", events.close(), ENRICHED_SCHEMA, "event_date"),
        ("quarantine", files, QUARANTINE_TABLE_SCHEMA, "ingest_date"),
    )
    for name, written, schema, by in tables:
        if plain:
            (out / "staging" / name).mkdir(parents=True, exist_ok=True)
            commit_parquet(out / "staging" / name, out / name, written)
        else:
            ensure_table(out / name, schema, [by])
            commit_files(out / name, schema, written, app_id="test", version=0, partition_by=[by])
    (out / "manifest.json").write_text("{}")
    return out


def _batch(schema: pa.Schema, rows: Sequence[Row]) -> pa.RecordBatch:
    fields = plain_schema(schema)
    names = {name for row in rows for name in row}
    columns = {f.name: pa.array([r.get(f.name) for r in rows], f.type) for f in fields if f.name in names}
    return conform(columns, schema, len(rows))


def selected(out: Path, where: str | None) -> pa.Table:
    """Returns the rows that ``where`` selects."""
    from headrace.connectors.read_quarantine import ROW_SCHEMA, open_quarantine, select_rows

    return pa.Table.from_batches(list(select_rows(open_quarantine(out), where)), schema=ROW_SCHEMA)
