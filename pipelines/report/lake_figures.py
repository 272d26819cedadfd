"""What a report tells of a lake: computed from its rows alone, whatever window tables were made."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from headrace.connectors.delta_commit import committed_files
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type
from headrace.transforms.funnel import funnel_outcomes, funnel_summary
from headrace.transforms.funnel_definitions import FunnelSteps
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, partial

BINS = tuple(timedelta(seconds=s) for s in (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400))
MOST_BINS = 180
TOP = 10
ROWS_AT_ONCE = 1_000_000
"""Sessions and funnels are made for so many rows at once, by the hash of the user."""
FUNNEL = FunnelSteps(
    {
        "page view": {"event_type": "page_view"},
        "product view": {"event_type": "product_view"},
        "add to cart": {"event_type": "add_to_cart"},
        "purchase": {"event_type": "purchase"},
    }
)
DURATIONS = (0, 10, 30, 60, 180, 600, 1800, 3600, math.inf)
"""Bounds in seconds of the classes of session durations."""


@dataclass
class LakeFigures:
    """Empty lists where the lake has nothing of the kind."""

    events: int = 0
    users: int = 0
    first: datetime | None = None
    last: datetime | None = None
    bin: timedelta = BINS[0]
    traffic: list[tuple[datetime, str, int]] = field(default_factory=list)
    """Start of the bin, event type, events."""
    users_by_bin: list[tuple[datetime, int]] = field(default_factory=list)
    revenue: list[tuple[datetime, str, Decimal]] = field(default_factory=list)
    """Start of the bin, currency ("none" if null), revenue; refunds negative."""
    currencies: list[tuple[str, Decimal, int]] = field(default_factory=list)
    """Currency, revenue, purchases and refunds; most of these first, as amounts of currencies can't be compared."""
    countries: list[tuple[str, int, int]] = field(default_factory=list)
    """Country, events, users; most events first."""
    products: list[tuple[str, int, int]] = field(default_factory=list)
    """Product, events, purchases."""
    categories: list[tuple[str, int, int]] = field(default_factory=list)
    families: list[tuple[str, int]] = field(default_factory=list)
    """Schema, events."""
    devices: list[tuple[str, int]] = field(default_factory=list)
    funnel: list[dict[str, Any]] = field(default_factory=list)
    """A row a step: name, users, conversion, step_conversion, median_seconds."""
    sessions: int = 0
    bounces: int = 0
    duration_seconds: float | None = None
    """Median."""
    durations: list[int] = field(default_factory=list)
    """Sessions by class of ``DURATIONS``."""
    channels: list[tuple[str, int, int]] = field(default_factory=list)
    """Channel, sessions, of these with a purchase."""
    delay_seconds: tuple[float, float] | None = None
    """Between event and ingest: median and 95 of 100."""


def lake_figures(out: Path, memory_limit: str = "2GB") -> LakeFigures:
    """Reads the lake of an output.

    Raises:
        ConfigError: the folder holds no lake.
    """
    root = out / "events"
    files = [str(root / path) for path in committed_files(root)] if root.exists() else []
    if not root.exists():
        raise ConfigError(f"{out} holds no lake (no folder events); name the --output of a run")
    if not files:
        return LakeFigures()
    db = duckdb.connect(config={"memory_limit": memory_limit, "preserve_insertion_order": False})
    db.execute(f"CREATE VIEW events AS {_view(files)}")
    found = LakeFigures()
    _overview(db, found)
    _by_time(db, found)
    _rankings(db, found)
    _users(db, found)
    return found


def _view(files: list[str]) -> str:
    names = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
    return (
        "SELECT *, epoch_us(event_time) AS t, epoch_us(ingest_time) AS ingested "
        f"FROM read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
    )


def _overview(db: duckdb.DuckDBPyConnection, found: LakeFigures) -> None:
    row = db.execute(
        "SELECT count(*), count(DISTINCT user_id), min(t), max(t), "
        "quantile_disc(ingested - t, 0.5), quantile_disc(ingested - t, 0.95) FROM events"
    ).fetchone()
    assert row is not None
    found.events, found.users = row[0], row[1]
    if not found.events:
        return
    found.first, found.last = _time(row[2]), _time(row[3])
    found.delay_seconds = (row[4] / 1e6, row[5] / 1e6)
    span = (row[3] - row[2]) / 1e6
    found.bin = next((b for b in BINS if span / b.total_seconds() <= MOST_BINS), BINS[-1])
    found.families = db.execute(
        "SELECT coalesce(schema, 'none'), count(*) FROM events GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    found.devices = db.execute(
        "SELECT coalesce(device_type, 'unknown'), count(*) FROM events GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()


def _by_time(db: duckdb.DuckDBPyConnection, found: LakeFigures) -> None:
    width = found.bin // timedelta(microseconds=1)
    start = f"(t - ((t % {width}) + {width}) % {width})"
    found.traffic = [
        (_time(at), type_, events)
        for at, type_, events in db.execute(
            f"SELECT {start}, coalesce(event_type, 'none'), count(*) FROM events GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()
    ]
    found.users_by_bin = [
        (_time(at), users)
        for at, users in db.execute(
            f"SELECT {start}, count(DISTINCT user_id) FROM events GROUP BY 1 ORDER BY 1"
        ).fetchall()
    ]
    found.revenue = [
        (_time(at), currency, revenue)
        for at, currency, revenue in db.execute(
            f"SELECT {start}, coalesce(currency, 'none'), sum(revenue) FROM events WHERE revenue IS NOT NULL "
            "GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()
    ]

    found.currencies = db.execute(
        "SELECT coalesce(currency, 'none'), sum(revenue), count(*) FROM events WHERE revenue IS NOT NULL "
        "GROUP BY 1 ORDER BY 3 DESC, 1"
    ).fetchall()


def _rankings(db: duckdb.DuckDBPyConnection, found: LakeFigures) -> None:
    found.countries = db.execute(
        "SELECT coalesce(country, 'unknown'), count(*), count(DISTINCT user_id) FROM events GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    for name in ("product_id", "category"):
        rows = db.execute(
            f"SELECT {name}, count(*), count(*) FILTER (WHERE event_type = 'purchase') FROM events "
            f"WHERE {name} IS NOT NULL AND event_category <> 'finance' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {TOP}"
        ).fetchall()
        if name == "product_id":
            found.products = rows
        else:
            found.categories = rows


def _users(db: duckdb.DuckDBPyConnection, found: LakeFigures) -> None:
    """Sessions and the funnel, of some users at a time."""
    outcomes, durations = [], []
    channels: dict[str, list[int]] = {}
    for batch in _some_users(db, found.events):
        outcomes.append(funnel_outcomes(batch, FUNNEL))
        sessions = finish(partial(batch, Sessions()), Sessions())
        found.sessions += sessions.num_rows
        found.bounces += int(sum(sessions.column("bounce").to_pylist()))
        durations.append(sessions.column("duration_seconds").to_numpy())
        bought = sessions.column("purchases").to_numpy() > 0
        for channel, buys in zip(sessions.column("channel").to_pylist(), bought.tolist(), strict=True):
            of = channels.setdefault(channel, [0, 0])
            of[0] += 1
            of[1] += buys
    if not found.sessions:
        return
    seconds = np.concatenate(durations)
    found.duration_seconds = float(np.median(seconds))
    found.durations = np.histogram(seconds, np.array(DURATIONS))[0].tolist()
    found.channels = sorted(
        ((name, all_, buys) for name, (all_, buys) in channels.items()), key=lambda row: (-row[1], row[0])
    )
    whole = pa.concat_tables([pa.Table.from_batches([o]) for o in outcomes]).combine_chunks()
    if whole.num_rows:
        found.funnel = funnel_summary(whole.to_batches()[0], FUNNEL).to_pylist()


def _some_users(db: duckdb.DuckDBPyConnection, events: int) -> Iterator[pa.RecordBatch]:
    """Yields all rows of some users, narrowed to what sessions and funnels read."""
    names = [n for n in ENRICHED_SCHEMA.names if n in {*Sessions().columns(), "event_type", "user_id"}]
    parts = max(1, -(-events // ROWS_AT_ONCE))
    for part in range(parts):
        table = db.sql(
            f"SELECT {', '.join(names)} FROM events WHERE user_id IS NOT NULL AND hash(user_id) % {parts} = {part}"
        ).to_arrow_table()
        if table.num_rows:
            batch = table.combine_chunks().to_batches()[0]
            columns = [
                as_type(c, ENRICHED_SCHEMA.field(n).type) for n, c in zip(names, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, names=names)


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC)
