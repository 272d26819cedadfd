"""Lakes for the tests of the nightly pipeline: random events, several at one time and in several files; what DuckDB says."""

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from headrace.connectors.delta_commit import commit_files, ensure_table
from headrace.connectors.write_lake import PartitionedWriter
from headrace.pipelines.nightly.nightly import NightlyResult, run_nightly
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.transforms.batches import conform

TYPES = (
    "page_view",
    "page_view",
    "product_view",
    "product_view",
    "add_to_cart",
    "purchase",
    "refund",
    "click",
)
FIRST, SECOND, THIRD = (date(2026, 1, d) for d in (5, 6, 7))
"""Of the fixture ``lake``."""
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
BEGIN = datetime(2026, 3, 27, 12, tzinfo=UTC)


def event(number: int, time: datetime, **changes: Any) -> dict[str, Any]:
    """Returns an event of the lake; columns that are not named are null."""
    return {
        "event_id": f"00000000-0000-4000-8000-{number:012d}",
        "event_time": time,
        "user_id": "ada",
        "event_type": "page_view",
        **changes,
    }


def random_events(
    count: int, seed: int, begin: datetime, hours: float, users: int = 40
) -> list[dict[str, Any]]:
    """Returns events that meet in time, currency and category, of few users, some of nobody; many near midnights."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        kind = chance.choice(TYPES)
        seconds = chance.choice((1, 60, 600)) * chance.randrange(int(hours * 6)) % int(hours * 3600)
        product = chance.choice((None, "p1", "p2", "p3", "p4")) if kind != "click" else None
        place = chance.choice((("DE", "BE"), ("DE", "HH"), ("FR", None), (None, None)))
        sign = {"purchase": 1, "refund": -1}.get(kind)
        found.append(
            event(
                seed * 1_000_000 + number,
                begin + timedelta(seconds=seconds, microseconds=chance.choice((0, 1, 999_999))),
                user_id=None if chance.random() < 0.05 else f"user-{chance.randrange(users)}",
                event_type=kind,
                page_url=chance.choice((None, "https://shop.example/a", "https://shop.example/b?x=1")),
                referrer=chance.choice((None, "https://www.google.com/")),
                device_type=chance.choice((None, "mobile", "desktop")),
                country=place[0],
                region=place[1],
                is_bot=chance.choice((None, False, True)),
                product_id=product,
                category=chance.choice((None, "toys", "books")) if product else None,
                quantity=chance.choice((None, 1, 2)),
                currency=chance.choice((None, "EUR", "USD")) if sign else chance.choice((None, "EUR")),
                revenue=Decimal(sign * chance.randrange(1, 10_000)) / 100 if sign else None,
            )
        )
    return found


def add_events(lake: Path, events: Sequence[dict[str, Any]], name: str, files: int = 2) -> None:
    """Commits events to a lake, in so many files a UTC date; makes the lake if there is none."""
    root = lake / "events"
    ensure_table(root, ENRICHED_SCHEMA, ["event_date"])
    written = []
    for number in range(files):
        mine = [e | {"event_date": e["event_time"].astimezone(UTC).date()} for e in events[number::files]]
        columns: dict[str, pa.Array] = {}
        for field in ENRICHED_SCHEMA:
            type_ = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            columns[field.name] = pa.array([e.get(field.name) for e in mine], type_)
        writer = PartitionedWriter(root, partition="event_date", name=f"{name}-{number}")
        writer.write(conform(columns, ENRICHED_SCHEMA, len(mine)))
        written += writer.close()
    commit_files(root, ENRICHED_SCHEMA, written, app_id=name, version=0, partition_by=["event_date"])


def config(lake: Path, output: Path, **settings: Any) -> NightlyConfig:
    return NightlyConfig(lake=str(lake), output=str(output), **{"shards": 3, **settings})


def nightly(work: Path, *days: date, out: str = "out", **settings: Any) -> NightlyResult:
    """Runs the dates from the first to the last given on ``work/lake``."""
    dates = (days[0], days[-1]) if days else None
    return run_nightly(config(work / "lake", work / out), dates, **settings)


def rows(output: Path, table: str) -> list[tuple[Any, ...]]:
    """Returns the committed rows of a table as plain values, sorted."""
    found = DeltaTable(str(output / table)).to_pyarrow_table()
    return ordered(tuple(row.values()) for row in found.to_pylist())


def same_rows(one: Path, other: Path) -> bool:
    """Returns whether two warehouses have equal rows in every table."""
    return all(rows(one, name) == rows(other, name) for name in TABLES)


def ordered(found: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(found, key=repr)


def data(output: Path) -> dict[str, bytes]:
    """Returns every data file of a warehouse by path."""
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.glob("*/*/*.parquet"))}


def database(lake: Path) -> duckdb.DuckDBPyConnection:
    """Returns a database with the lake's rows as table ``lake``; times are plain UTC."""
    db = duckdb.connect(config={"threads": 1})
    table = DeltaTable(str(lake / "events")).to_pyarrow_table()
    at = table.schema.get_field_index("event_time")
    source = table.set_column(at, "event_time", table["event_time"].cast(pa.timestamp("us")))
    db.register("source", source)
    db.execute("CREATE TABLE lake AS SELECT * FROM source")
    return db
