"""What the tables of an output really hold: counted from the files of one version, in bounded memory."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import duckdb
import pyarrow.parquet as pq
from deltalake import DeltaTable

from headrace.connectors.delta_commit import committed_files
from headrace.connectors.removals import EVENTS, QUARANTINE, Count, Origin
from headrace.schemas.errors import ConfigError

TABLES = (EVENTS, QUARANTINE)
MEMORY = "1GB"
"""DuckDB's own; what needs more goes to a temporary folder."""
IDS_AT_ONCE = 20_000_000
"""Ids that are held against each other in one pass; all rows are read once a pass."""
_WORD, _SHIFT = 32, 5
"""Positions in a word of the map of positions, and its logarithm."""
_WITHIN = (
    "EXISTS (SELECT 1 FROM read_ranges r WHERE r.origin = p.origin AND p.pos >= r.first AND p.pos < r.stop)"
)
_NEEDED = {
    EVENTS: {
        "event_id": "VARCHAR",
        "event_time": "TIMESTAMPTZ",
        "ingest_time": "TIMESTAMPTZ",
        "origin": "VARCHAR",
        "origin_position": "BIGINT",
    },
    QUARANTINE: {
        "event_time": "TIMESTAMPTZ",
        "ingest_time": "TIMESTAMPTZ",
        "origin": "VARCHAR",
        "origin_position": "BIGINT",
        "stage": "VARCHAR",
        "reason": "VARCHAR",
    },
}


class Twice(NamedTuple):
    """One position of one origin that more than one row has."""

    origin: str
    position: int
    events: int
    quarantine: int


class Copies(NamedTuple):
    """One id that several rows of the lake have."""

    event_id: str
    rows: int
    places: str
    """Origin and position of some of them."""


@dataclass(frozen=True)
class Positions:
    """Which positions of an origin the tables hold."""

    origin: str
    rows: int
    distinct: int
    first: int
    last: int


@dataclass(frozen=True)
class Files:
    """The files of the tables at one version, and what is wrong with them."""

    out: Path
    paths: dict[str, list[str]]
    """By table: files that are there, with the size that the table's log names."""
    broken: list[tuple[str, str, str]]
    """(table, path, what is wrong) of the others."""


def open_files(out: Path, tables: Sequence[str] = TABLES) -> Files:
    """Lists the committed files, and looks at size and footer of each.

    Raises:
        ConfigError: there is no committed table where a folder is.
    """
    paths: dict[str, list[str]] = {}
    broken = []
    for name in tables:
        paths[name] = []
        root = out / name
        if not root.is_dir():
            continue
        if not DeltaTable.is_deltatable(os.fspath(root)) and not any(root.rglob("*.parquet")):
            continue  # A run that has been given no row of the kind has made the folder only.
        for path, size in committed_files(root).items():
            where = root / unquote(path)
            wrong = _look(where, size)
            if wrong:
                broken.append((name, path, wrong))
            else:
                paths[name].append(os.fspath(where))
    return Files(out, paths, broken)


def _look(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found:,} bytes, the table's log says {size:,}"
        pq.read_metadata(path)
    except FileNotFoundError:
        return "is missing"
    except Exception as error:  # noqa: BLE001 - whatever Arrow raises, the file can't be read
        return f"can't be read as Parquet ({type(error).__name__})"
    return ""


class HeldRows:
    """Questions to the rows of both tables. Use it through :func:`hold`."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        self._db = db
        self._mapped = False

    def counts(self, table: str) -> list[Count]:
        """Returns the rows of a table by partition, hour, run, stage and reason, sorted."""
        codes = "stage, reason" if table == QUARANTINE else "'' AS stage, '' AS reason"
        return [
            Count(*row)
            for row in self._rows(
                f"SELECT day, coalesce(strftime(coalesce(event_time, ingest_time), '%Y-%m-%dT%H'), '') AS hour, run, {codes}, "
                f"count(*) FROM {table} GROUP BY ALL ORDER BY ALL"
            )
        ]

    def origins(self, table: str) -> list[Origin]:
        """Returns the rows of a table by origin; those without a position are left out."""
        return [
            Origin(*row)
            for row in self._rows(
                f"SELECT origin, count(*), min(origin_position), max(origin_position) FROM {table} "
                "WHERE origin_position IS NOT NULL GROUP BY ALL ORDER BY ALL"
            )
        ]

    def without_position(self) -> int:
        """Returns how many rows have no position, so that they can't be held against what was read."""
        return int(self._one("SELECT count(*) FROM placed WHERE origin IS NULL OR pos IS NULL")[0])

    def positions(self) -> list[Positions]:
        """Returns each origin's positions, of both tables together, counted with a bit each."""
        self._map()
        return [
            Positions(*row)
            for row in self._rows(
                "SELECT origin, sum(n)::BIGINT, sum(bit_count(bits))::BIGINT, min(low), max(high) FROM words "
                "GROUP BY ALL ORDER BY ALL"
            )
        ]

    def twice(self, limit: int) -> tuple[int, list[Twice]]:
        """Returns by how many rows the positions are fewer, and some of those that several rows have."""
        self._map()
        surplus = int(self._one("SELECT coalesce(sum(n - bit_count(bits)), 0) FROM words")[0])
        if not surplus:
            return 0, []
        shown = self._rows(
            "SELECT p.origin, p.pos, count(*) FILTER (tab = 'events') AS e, count(*) FILTER (tab = 'quarantine') AS q "
            "FROM placed p JOIN (SELECT origin, word FROM words WHERE n > bit_count(bits)) w "
            f"ON p.origin = w.origin AND p.pos >> {_SHIFT} = w.word GROUP BY ALL HAVING count(*) > 1 "
            f"ORDER BY ALL LIMIT {limit}"
        )
        return surplus, [Twice(*row) for row in shown]

    def gaps(self, origin: str, first: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
        """Yields [from, to) of up to ``limit`` stretches in [first, stop) of an origin that no row has, ascending."""
        self._map()
        after = first
        cursor = self._db.cursor()
        cursor.execute(
            "SELECT word, bits FROM words WHERE origin = ? AND word BETWEEN ? AND ? ORDER BY word",
            [origin, first // _WORD, (stop - 1) // _WORD],
        )
        found = 0
        while rows := cursor.fetchmany(10_000):
            for word, bits in rows:
                for position in (word * _WORD + i for i in range(_WORD) if bits >> i & 1):
                    if position < first or position >= stop:
                        continue
                    if position > after:
                        yield after, position
                        found += 1
                        if found == limit:
                            return
                    after = position + 1
        if after < stop:
            yield after, stop

    def beyond(self, ranges: Mapping[str, Sequence[tuple[int, int]]]) -> int:
        """Returns how many rows lie at positions outside of ``ranges`` ({origin: [first, next) stretches})."""
        self._fill(ranges)
        return int(self._one(f"SELECT count(*) FROM placed p WHERE pos IS NOT NULL AND NOT {_WITHIN}")[0])

    def distinct_within(self, ranges: Mapping[str, Sequence[tuple[int, int]]]) -> int:
        """Returns how many distinct positions lie in ``ranges``."""
        self._fill(ranges)
        sql = f"SELECT count(*) FROM (SELECT DISTINCT origin, pos FROM placed p WHERE pos IS NOT NULL AND {_WITHIN})"
        return int(self._one(sql)[0])

    def _fill(self, ranges: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        rows = [(origin, first, next_) for origin, each in ranges.items() for first, next_ in each]
        self._db.execute(
            "CREATE OR REPLACE TEMP TABLE read_ranges (origin VARCHAR, first BIGINT, stop BIGINT)"
        )
        if rows:
            self._db.executemany("INSERT INTO read_ranges VALUES (?, ?, ?)", rows)

    def copies(self, limit: int, *, within: timedelta | None, by_day: bool) -> tuple[int, list[Copies]]:
        """Returns how many rows of the lake have an id that an earlier one has, and some of the ids.

        Ids are compared by 64 bits first; what recurs, exactly.

        Args:
            within: only copies so near in ingest time count; None: all.
            by_day: only copies in one partition count.
        """
        rows = int(self._one("SELECT count(*) FROM events")[0])
        passes = max(1, -(-rows // IDS_AT_ONCE))
        day = ", day" if by_day else ""
        self._db.execute("CREATE OR REPLACE TEMP TABLE recurring (h UBIGINT)")
        for number in range(passes):
            self._db.execute(
                f"INSERT INTO recurring SELECT DISTINCT h FROM (SELECT hash(event_id) AS h{day} FROM events "
                f"WHERE event_id IS NOT NULL AND hash(event_id) % {passes} = {number} GROUP BY h{day} HAVING count(*) > 1)"
            )
        near = "TRUE"
        if within is not None:
            near = f"epoch_us(ingest_time) - epoch_us(before) <= {within // timedelta(microseconds=1)}"
        self._db.execute(
            "CREATE OR REPLACE TEMP TABLE copied AS SELECT * FROM (SELECT event_id, origin, origin_position, ingest_time, "
            "lag(ingest_time) OVER w AS before, lag(event_id) OVER w AS earlier FROM events "
            "SEMI JOIN recurring ON hash(event_id) = h "
            f"WINDOW w AS (PARTITION BY event_id{day} ORDER BY ingest_time)) WHERE earlier IS NOT NULL AND {near}"
        )
        surplus = int(self._one("SELECT count(*) FROM copied")[0])
        shown = self._rows(
            "SELECT event_id, count(*) + 1, min(coalesce(origin, '?') || ':' || coalesce(origin_position::VARCHAR, '?')) "
            f"FROM copied GROUP BY ALL ORDER BY ALL LIMIT {limit}"
        )
        return surplus, [Copies(*row) for row in shown]

    def _map(self) -> None:
        """Makes the map of positions, once: a bit a position, so that it has a 32nd of the rows where positions are dense."""
        if not self._mapped:
            self._db.execute(
                f"CREATE TABLE words AS SELECT origin, pos >> {_SHIFT} AS word, count(*) AS n, min(pos) AS low, "
                f"max(pos) AS high, bit_or(1::UBIGINT << (pos & {_WORD - 1})::INTEGER) AS bits FROM placed "
                "WHERE origin IS NOT NULL AND pos IS NOT NULL GROUP BY origin, word"
            )
            self._mapped = True

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql).fetchall()

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._db.execute(sql).fetchone()
        assert row is not None
        return row


@contextlib.contextmanager
def hold(files: Files) -> Iterator[HeldRows]:
    """Opens the rows of the files.

    Raises:
        ConfigError: a file went away meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-") as spill:
        db = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": MEMORY,
                "temp_directory": spill,
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
            },
        )
        try:
            db.execute("SET TimeZone = 'UTC'")
            for name in TABLES:
                db.execute(f"CREATE VIEW {name} AS {_view(db, name, files.paths.get(name, []))}")
            db.execute(
                "CREATE VIEW placed AS SELECT 'events' AS tab, origin, origin_position AS pos FROM events "
                "UNION ALL SELECT 'quarantine', origin, origin_position FROM quarantine"
            )
            yield HeldRows(db)
        except duckdb.IOException as error:
            raise ConfigError(
                f"a file of {files.out} went away while it was read ({str(error).splitlines()[0]}); run the same command again"
            ) from error
        finally:
            db.close()


def _view(db: duckdb.DuckDBPyConnection, table: str, paths: Sequence[str]) -> str:
    """Returns the query over a table's files: the columns needed, null where a file lacks one, with day and run of the file."""
    needed = _NEEDED[table]
    if not paths:
        columns = ", ".join(f"NULL::{type_} AS {name}" for name, type_ in needed.items())
        return f"SELECT {columns}, '' AS day, '' AS run WHERE false"
    names: set[str] = set()
    for path in paths:
        names |= set(pq.read_schema(path).names)
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    columns = ", ".join(
        f"{name}::{type_} AS {name}" if name in names else f"NULL::{type_} AS {name}"
        for name, type_ in needed.items()
    )
    # The first partition column is in the folder right below the table's.
    root = f"/{table}/"
    return (
        f"SELECT {columns}, regexp_extract(filename, '.*{root}[a-z_]+=([^/]+)/', 1) AS day, "
        "regexp_extract(filename, '/part-(replay-[0-9a-f]+)[^/]*$', 1) AS run "
        f"FROM read_parquet([{listed}], union_by_name = true, filename = true, hive_partitioning = false)"
    )
