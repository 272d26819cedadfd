"""Archives for tests, and a plain account of what a backfill has to make of them."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.pipelines.backfill.backfill import BackfillResult, run_backfill
from headrace.pipelines.backfill.backfill_config import BackfillConfig

DAY = timedelta(days=1)
TIME = pa.timestamp("us", "UTC")
Row = dict[str, Any]


def at(day: date, hour: float = 12.0) -> datetime:
    """Returns an instant of a date; hours may reach beyond it."""
    return datetime.combine(day, time(), UTC) + timedelta(hours=hour)


def event(number: int, when: datetime, **changes: Any) -> Row:
    """Returns a row of the family ``commerce``."""
    return {
        "event_id": f"3f2b8c1e-9d4a-4e6b-8a7c-{number:012d}",
        "user_id": f"user-{number % 17}",
        "event_type": "product_view" if number % 3 else "purchase",
        "timestamp": when,
        "product_id": f"p{number % 5}",
        "price": Decimal(100 + number % 900) / 100,
        **changes,
    }


def table(rows: Sequence[Row], style: int = 1) -> pa.Table:
    """Returns rows as a team would have written them: three schemas, one after the other."""
    whole = {
        "event_id": pa.array([r["event_id"] for r in rows]),
        "user_id": pa.array([r["user_id"] for r in rows], pa.string()),
        "event_type": pa.array([r["event_type"] for r in rows]),
    }
    times = pa.array([r["timestamp"] for r in rows], TIME)
    products = pa.array([r["product_id"] for r in rows])
    prices = pa.array([r["price"] for r in rows], pa.decimal128(12, 2))
    orders = pa.array([f"o{r['event_id'][-4:]}" for r in rows])
    if style == 1:  # Flat, money as a float, times without a zone, a column that is always empty.
        columns = {
            "timestamp": times.cast(pa.timestamp("ms")),
            "properties.product_id": products,
            "properties.price": prices.cast(pa.float64()),
            "transaction.order_id": orders,
            "legacy": pa.nulls(len(rows), pa.string()),
        }
    elif style == 2:  # Structs, money as decimals, coded texts.
        whole["event_type"] = whole["event_type"].dictionary_encode()
        columns = {
            "timestamp": times,
            "properties": pa.StructArray.from_arrays([products, prices], names=["product_id", "price"]),
            "transaction": pa.StructArray.from_arrays([orders], names=["order_id"]),
        }
    else:  # Times as text, a new field, and when each row arrived.
        columns = {
            "timestamp": pa.array([r["timestamp"].isoformat().replace("+00:00", "Z") for r in rows]),
            "properties": pa.StructArray.from_arrays(
                [products, prices, orders], names=["product_id", "price", "campaign"]
            ),
            "transaction": pa.StructArray.from_arrays([orders], names=["order_id"]),
            "ingest_time": pa.array([r.get("arrived") for r in rows], TIME),
        }
    return pa.table({**whole, **columns})


def write_day(
    root: Path, day: date, rows: Sequence[Row], *, style: int = 1, layout: str = "dt={}", part: int = 0
) -> Path:
    """Writes one file of the folder of a date; row groups of ten rows."""
    folder = root / layout.format(day.isoformat()) if "{}" in layout else root / day.strftime(layout)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{part}.parquet"
    pq.write_table(table(rows, style), path, row_group_size=10)
    return path


def run(archive: Path, out: Path, key: Path, first: date, last: date, **settings: Any) -> BackfillResult:
    """Runs a backfill in this process."""
    named = {n: settings.pop(n) for n in ("resume", "beam_args", "on_date", "on_table") if n in settings}
    config = BackfillConfig(
        archive=str(archive),
        output=str(out),
        key_file=str(key),
        first=first.isoformat(),
        last=last.isoformat(),
        **settings,
    )
    return run_backfill(config, **named)


def events(out: Path) -> list[Row]:
    """Returns the rows of the lake, by date and id."""
    found = DeltaTable(str(out / "events")).to_pyarrow_table()
    return found.sort_by([("event_date", "ascending"), ("event_id", "ascending")]).to_pylist()


def rejected(out: Path) -> Counter[tuple[date, str]]:
    """Returns the rejected rows by the date to which they count, and by reason."""
    found = DeltaTable(str(out / "quarantine")).to_pyarrow_table()
    return Counter(zip(found["backfill_date"].to_pylist(), found["reason"].to_pylist(), strict=True))


def data_files(out: Path) -> dict[str, bytes]:
    """Returns every committed data file and every metric, by path."""
    found = {}
    for name in ("events", "quarantine"):
        for path in DeltaTable(str(out / name)).file_uris():
            found[Path(path).relative_to(out).as_posix()] = Path(path).read_bytes()
    for metric in sorted((out / "metrics").rglob("*.parquet")):
        found[metric.relative_to(out).as_posix()] = metric.read_bytes()
    return found


@dataclass
class Account:
    """What a backfill has to make of files, row by row and in plain Python."""

    accepted: dict[date, list[Row]] = field(default_factory=dict)
    rejected: Counter[tuple[date, str]] = field(default_factory=Counter)


def account(files: Iterable[tuple[str, date, int, Sequence[Row]]], *, max_age: timedelta = DAY) -> Account:
    """Judges the rows of files, given as (origin, folder's date, style, rows), in the order of their origins."""
    found = Account()
    seen: dict[tuple[date, str], Row] = {}
    for _, folder, style, rows in sorted(files, key=lambda file: file[0]):
        for row in rows:
            arrived = (row.get("arrived") if style == 3 else None) or at(folder, 24) - timedelta(
                microseconds=1
            )
            happened = row["timestamp"].astimezone(UTC)
            day = happened.date()
            if abs(folder - (day if row["user_id"] is not None else arrived.date())) > DAY:
                continue  # No date is made of folders that far away.
            if row["user_id"] is None:
                found.rejected[arrived.date(), "required"] += 1
            elif happened < arrived - max_age:
                found.rejected[day, "stale"] += 1
            elif happened > arrived + timedelta(minutes=5):
                found.rejected[day, "future"] += 1
            elif (before := seen.get((day, row["event_id"]))) is not None:
                same = all(
                    before[n] == row[n] for n in ("user_id", "event_type", "timestamp", "price", "product_id")
                )
                found.rejected[day, "duplicate" if same else "duplicate_conflict"] += 1
            else:
                seen[day, row["event_id"]] = row
                found.accepted.setdefault(day, []).append(row)
    return found


def random_rows(random_: random.Random, day: date, first: int, count: int, style: int) -> list[Row]:
    """Rows that arrive on a date: some late, some stale, some of a clock that is ahead, some twice, some broken."""
    rows: list[Row] = []
    for number in range(first, first + count):
        kind = random_.random()
        arrived = at(day, random_.uniform(1, 23))
        happened = arrived - timedelta(seconds=random_.randrange(0, 1800))
        if kind < 0.05:
            happened = at(day, -1) if style != 3 else arrived - timedelta(hours=23)
        elif kind < 0.08:
            happened = at(day, -30)
        elif kind < 0.11:
            happened = at(day, 24) + timedelta(minutes=random_.choice([3, 30]))
        happened = happened.replace(microsecond=0)
        row = event(number, happened, arrived=None if kind > 0.98 else arrived)
        if 0.11 < kind < 0.14:
            row["user_id"] = None
        rows.append(row)
        if 0.14 < kind < 0.18:
            rows.append({**row})
        elif 0.18 < kind < 0.21:
            rows.append({**row, "price": row["price"] + 1})
    return rows
