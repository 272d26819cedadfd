"""Which tables an output has, what kind of data each is, and which of its dates may go."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from headrace.connectors.delta_commit import MARKER
from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.connectors.stream_output import FILE as STREAM_FILE
from headrace.connectors.stream_output import read_jobs
from headrace.pipelines.ledgers.accounts import BACKFILL, STREAM, kind_of
from headrace.pipelines.nightly.nightly_tables import TABLES as NIGHTLY
from headrace.pipelines.nightly.plan_day import read_snapshot
from headrace.pipelines.nightly.stale_dates import stale_dates
from headrace.pipelines.nightly.warehouse import FILE as WAREHOUSE_FILE
from headrace.pipelines.nightly.warehouse import Warehouse
from headrace.schemas.errors import ConfigError

WAREHOUSE = "warehouse"
PARTITIONED, WINDOWED, LISTED, WINDOW_FILE, DATED_FILES = (
    "partitioned",
    "windowed",
    "listed",
    "window file",
    "dated files",
)
"""A Delta table by date; one without partitions, with window_start; a plain Parquet lake with its list of files; one Parquet file
of windows; and a folder a date."""
WINDOW = "window_start"
_USERS = ("user_sessions", "user_daily_metrics")
_FIRST_SEEN = "user_first_seen"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class OutputTable:
    """One table of an output."""

    name: str
    kind: str
    """Kind of data of the policy."""
    form: str
    partition: str = ""
    """The first partition column, a date."""


@dataclass
class Output:
    """An output or a warehouse, its tables, and the dates that have to stay."""

    root: Path
    what: str
    tables: list[OutputTable]
    writes_from: date | None = None
    """A running stream may write to this date and later ones."""
    no_watermark: bool = False
    """A stream of which it is not known what it may still write: nothing goes."""
    needed: dict[date, str] = field(default_factory=dict)
    """Dates of the lake that a warehouse still needs, and why."""
    notes: list[str] = field(default_factory=list)


def open_output(root: Path) -> Output:
    """Finds an output's tables.

    Raises:
        ConfigError: it is neither the output of a run nor a warehouse.
    """
    if (root / WAREHOUSE_FILE).is_file():
        tables = [
            OutputTable(name, "users" if name in _USERS else "aggregates", PARTITIONED, "date")
            for name in NIGHTLY
            if name != _FIRST_SEEN and DeltaTable.is_deltatable(os.fspath(root / name))
        ]
        note = f"{_FIRST_SEEN} stays: cohorts of all later dates are made from it"
        return Output(root, WAREHOUSE, tables, notes=[note] if (root / _FIRST_SEEN).is_dir() else [])
    what = kind_of(root)
    found = Output(root, what, list(_tables(root, what)))
    if what == STREAM:
        _hold_stream(found)
    return found


def _tables(root: Path, what: str) -> list[OutputTable]:
    tables = []
    for name, kind in (("events", "raw"), ("quarantine", "quarantine")):
        where = root / name
        if DeltaTable.is_deltatable(os.fspath(where)):
            tables.append(
                OutputTable(
                    name, kind, PARTITIONED, DeltaTable(os.fspath(where)).metadata().partition_columns[0]
                )
            )
        elif (where / MARKER).is_file():
            tables.append(
                OutputTable(name, kind, LISTED, "event_date" if name == "events" else "ingest_date")
            )
    for folder in ("metrics", "corrections", "late"):
        for path in sorted((root / folder).iterdir()) if (root / folder).is_dir() else []:
            name = f"{folder}/{path.name}"
            if DeltaTable.is_deltatable(os.fspath(path)):
                if WINDOW in [f.name for f in DeltaTable(os.fspath(path)).schema().fields]:
                    tables.append(OutputTable(name, "aggregates", WINDOWED))
            elif what == BACKFILL:
                tables.append(OutputTable(name, "aggregates", DATED_FILES, "date"))
            elif (path / "part-0.parquet").is_file():
                tables.append(OutputTable(name, "aggregates", WINDOW_FILE))
    return tables


def _hold_stream(output: Output) -> None:
    """Finds the first date that the stream may still write to, as a replay does: by its watermark and its oldest event."""
    jobs = read_jobs(output.root)
    if jobs and "finished" in jobs[-1].layout:
        return
    watermark = read_stream_ledger(output.root, positions=False).watermark
    if watermark is None:
        output.no_watermark = True
        return
    said = jobs[-1].configuration if jobs else {}
    age = max(int(said.get("max_age_seconds", 86_400)), int(said.get("allowed_lateness_seconds", 0)))
    ahead = int(said.get("max_ahead_seconds", 300))
    output.writes_from = (watermark - timedelta(seconds=age + ahead)).astimezone(UTC).date()


def hold_needed(lakes: list[Output], warehouses: list[Output]) -> None:
    """Finds the dates of lakes that warehouses among the outputs have not made their tables of, or would make again."""
    for lake in lakes:
        if not DeltaTable.is_deltatable(os.fspath(lake.root / "events")):
            continue
        snapshot = read_snapshot(lake.root)
        for each in warehouses:
            settings = json.loads((each.root / WAREHOUSE_FILE).read_bytes())
            if settings["lake_id"] == snapshot.table_id:
                warehouse = Warehouse(each.root, settings, None)
                stale = {found.date: found.reason for found in stale_dates(warehouse, snapshot)}
                done = {day for day, manifest in warehouse.manifests() if manifest.state == "done"}
                for name in dates_of(DeltaTable(os.fspath(lake.root / "events")), "event_date"):
                    day = date.fromisoformat(name)
                    why = _why_needed(day, done, stale)
                    if why:
                        lake.needed[day] = f"{each.root.name} {why}"


def _why_needed(day: date, done: set[date], stale: dict[date, str]) -> str:
    """Whatever the zone, events of a UTC date lie in its local date or a neighbour's, and a date reads the gap before it."""
    if not done:
        return "has run no date yet"
    for near in (day - _DAY, day, day + _DAY):
        if near in stale:
            return f"has to run {near} again ({stale[near]})"
        if near not in done and near >= min(done):
            return f"has not run {near}"
    return ""


def dates_of(table: DeltaTable, column: str) -> list[str]:
    """Returns the dates of a table's partitions, ascending."""
    actions = pa.table(table.get_add_actions(flatten=True))
    name = f"partition.{column}"
    if name not in actions.column_names:
        return []
    return sorted({str(value) for value in actions.column(name).to_pylist() if value is not None})


def stays(output: Output, table: OutputTable, day: date) -> str:
    """Returns why a date has to stay although it is old enough; empty if it may go."""
    if output.no_watermark:
        return "how far the stream has come is not known yet, so it may still write to any date"
    if output.writes_from is not None and day >= output.writes_from:
        return f"the stream may still write to dates from {output.writes_from} on"
    if table.name == "events" and day in output.needed:
        return output.needed[day]
    return ""


def is_stream(root: Path) -> bool:
    return (root / STREAM_FILE).is_file()


def require_date(text: str) -> date | None:
    """Returns a partition's date; None if it is none (``__HIVE_DEFAULT_PARTITION__``)."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def require_known(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigError(f"output {root} does not exist; name the --output of a run, or a warehouse")
    return root
