"""Holds every record of the topic against what the stream has left of it. It shares no code with the pipeline but the rule of
which window rows count (``latest_rows``).

What has to be true of an output whose stream has ended with ``--until``:

1. The topic holds what the producer was told it holds.
2. Every record of the topic, by origin and offset, is in exactly one row of lake and quarantine together, and no other row is.
3. Of every id that may be accepted there is exactly one row in the lake; its other copies are rejected as ``duplicate``, those
   with other content as ``duplicate_conflict``; nothing that is invalid is in the lake.
4. Every commit of the ledger balances, no poll is open, and its totals are the counts of the files.
5. Every window has the result that DuckDB finds over the lake's rows, less those in ``OUT/late``; every window is final; the
   revenue of all windows and late rows is the sum that the producer sent.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from deltalake import DeltaTable

from headrace.transforms.window_rows import latest_rows
from tests.chaos.producer import CONFLICT, DUPLICATE, EVENT, LATE, REFUSED

SHOWN = 4
_MINUTE_US = 60_000_000


@dataclass
class Verdict:
    """What was found."""

    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults

    def require(self, what: str, bad: Any, explain: Callable[[Any], object] = lambda bad: bad) -> None:
        """Notes a fault if there is anything bad."""
        number = bad.num_rows if isinstance(bad, pa.Table) else len(bad)
        if number:
            some = bad.slice(0, SHOWN).to_pylist() if isinstance(bad, pa.Table) else list(bad)[:SHOWN]
            self.faults.append(f"{what}: {number:,}, for example {[explain(each) for each in some]}")

    def equal(self, what: str, found: object, expected: object) -> None:
        """Notes a fault if two figures differ."""
        if found != expected:
            self.faults.append(f"{what}: found {found}, expected {expected}")


def check(broker: str, topic: str, manifest: Path, out: Path) -> Verdict:
    """Reads everything and gives the verdict. The output must be at rest.

    Args:
        broker: ``host:port``.
        manifest: what the producer wrote.
        out: the stream's output.
    """
    verdict = Verdict()
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    db.execute("SET memory_limit = '2GB'")
    db.register("topic", _topic(broker, topic))
    db.execute(
        "CREATE TABLE sent AS SELECT * FROM read_csv(?, header = false, columns = "
        "{'partition': 'BIGINT', 'offset': 'BIGINT', 'kind': 'VARCHAR', 'id': 'VARCHAR', 'cents': 'BIGINT'})",
        [str(manifest)],
    )
    for name in ("events", "quarantine"):
        files = _files(out / name)
        columns = "origin, origin_position, event_id" + (
            ", stage, reason"
            if name == "quarantine"
            else ", event_time, event_type, user_id, currency, revenue"
        )
        db.execute(
            f"CREATE TABLE {name} AS SELECT {columns} FROM read_parquet(?, hive_partitioning = false, union_by_name = true)",
            [files],
        )
    db.execute(
        f"""CREATE TABLE records AS
        SELECT '{topic}/' || t.partition AS origin, t.offset AS origin_position, t.hash, s.kind, s.id, s.cents
        FROM topic t LEFT JOIN sent s ON t.partition = s.partition AND t.offset = s.offset"""
    )
    _check_topic(verdict, db)
    _check_records(verdict, db)
    _check_ids(verdict, db)
    _check_ledger(verdict, db, out)
    _check_windows(verdict, db, out)
    return verdict


def _check_topic(verdict: Verdict, db: duckdb.DuckDBPyConnection) -> None:
    [records] = _row(db, "SELECT count(*) FROM records")
    verdict.counts["records"] = records
    for kind, number in db.execute("SELECT kind, count(*) FROM records GROUP BY 1 ORDER BY 1").fetchall():
        verdict.counts[f"records {kind}"] = number
    verdict.require(
        "records that the broker acknowledged are not in the topic",
        db.sql(
            "SELECT * FROM sent s ANTI JOIN topic t ON t.partition = s.partition AND t.offset = s.offset"
        ).to_arrow_table(),
    )
    verdict.require(
        "records of the topic that are not in the manifest",
        db.sql("SELECT origin, origin_position FROM records WHERE kind IS NULL").to_arrow_table(),
    )


def _check_records(verdict: Verdict, db: duckdb.DuckDBPyConnection) -> None:
    db.execute(
        """CREATE TABLE kept AS
        SELECT origin, origin_position, 'lake' AS place, event_id, NULL AS stage, NULL AS reason FROM events UNION ALL
        SELECT origin, origin_position, 'quarantine', event_id, stage, reason FROM quarantine"""
    )
    verdict.counts["lake"], verdict.counts["quarantine"] = _row(
        db, "SELECT count(*) FILTER (place = 'lake'), count(*) FILTER (place = 'quarantine') FROM kept"
    )
    verdict.require(
        "records that are in no row (lost)",
        db.sql(
            "SELECT origin, origin_position, kind FROM records ANTI JOIN kept USING (origin, origin_position) "
            "ORDER BY 1, 2"
        ).to_arrow_table(),
    )
    verdict.require(
        "records that are in several rows (doubled)",
        db.sql(
            "SELECT origin, origin_position, count(*) AS n, list(place || coalesce(':' || reason, '')) AS places FROM kept "
            "GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 1, 2"
        ).to_arrow_table(),
    )
    verdict.require(
        "rows of no record",
        db.sql(
            "SELECT origin, origin_position, place FROM kept ANTI JOIN records USING (origin, origin_position)"
        ).to_arrow_table(),
    )


def _check_ids(verdict: Verdict, db: duckdb.DuckDBPyConnection) -> None:
    refused = ", ".join(f"'{kind}'" for kind in REFUSED)
    verdict.require(
        "ids that are in the lake more than once",
        db.sql("SELECT event_id, count(*) AS n FROM events GROUP BY 1 HAVING count(*) > 1").to_arrow_table(),
    )
    verdict.require(
        "ids that should be in the lake and are not",
        db.sql(
            f"SELECT DISTINCT id FROM records ANTI JOIN events ON events.event_id = records.id WHERE kind NOT IN ({refused})"
        ).to_arrow_table(),
    )
    verdict.require(
        "invalid records that are in the lake",
        db.sql(
            f"SELECT kind, id FROM records JOIN events USING (origin, origin_position) WHERE kind IN ({refused})"
        ).to_arrow_table(),
    )
    verdict.require(
        "lake rows with another id than their record",
        db.sql(
            "SELECT id, event_id FROM records JOIN events USING (origin, origin_position) WHERE id <> event_id"
        ).to_arrow_table(),
    )
    verdict.require(
        "copies that were rejected with another reason than they should",
        db.sql(
            f"""WITH copies AS (SELECT r.*, k.place, k.stage, k.reason FROM records r JOIN kept k USING (origin, origin_position)
                WHERE kind NOT IN ({refused})),
            first AS (SELECT id, any_value(hash) AS hash FROM copies WHERE place = 'lake' GROUP BY id)
            SELECT c.id, c.kind, c.stage, c.reason FROM copies c JOIN first USING (id) WHERE c.place = 'quarantine' AND
                (c.stage <> 'dedupe' OR
                 c.reason <> CASE WHEN c.hash = first.hash THEN 'duplicate' ELSE 'duplicate_conflict' END)"""
        ).to_arrow_table(),
    )
    for stage, reason, number in db.execute(
        "SELECT stage, reason, count(*) FROM quarantine GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall():
        verdict.counts[f"rejected {stage}/{reason}"] = number
    [extra] = _row(
        db, f"SELECT count(*) FROM records WHERE kind IN ('{EVENT}', '{LATE}', '{DUPLICATE}', '{CONFLICT}')"
    )
    [dedupe] = _row(db, "SELECT count(*) FROM quarantine WHERE stage = 'dedupe'")
    verdict.equal("valid records are lake rows and copies", verdict.counts["lake"] + dedupe, extra)


def _check_ledger(verdict: Verdict, db: duckdb.DuckDBPyConnection, out: Path) -> None:
    rows = _table(out / "ledger").sort_by("number").to_pylist()
    if not rows:
        verdict.faults.append("the ledger has no row")
        return
    verdict.counts["commits"] = len(rows)
    verdict.require(
        "commits that don't balance", [row for row in rows if not row["balanced"]], lambda row: row["fault"]
    )
    last = rows[-1]
    verdict.equal("numbers of the ledger's rows", [row["number"] for row in rows], list(range(len(rows))))
    verdict.equal("rows in flight at the end", last["in_flight"], 0)
    verdict.equal("open polls at the end", last["open_polls"], 0)
    verdict.equal("the ledger's rows in", last["total_rows_in"], verdict.counts["records"])
    verdict.equal(
        "the sum of the commits' rows in", sum(row["rows_in"] for row in rows), last["total_rows_in"]
    )
    verdict.equal("the ledger's accepted rows", last["total_accepted"], verdict.counts["lake"])
    counted: dict[str, dict[str, int]] = {}
    for stage, reason, number in db.execute(
        "SELECT stage, reason, count(*) FROM quarantine GROUP BY 1, 2"
    ).fetchall():
        counted.setdefault(stage, {})[reason] = number
    held = {
        stage: {reason: number for reason, number in reasons.items() if number}
        for stage, reasons in json.loads(last["total_rejected"]).items()
    }
    verdict.equal(
        "the ledger's rejected rows", {stage: reasons for stage, reasons in held.items() if reasons}, counted
    )
    next_: dict[str, int] = {}
    for row in rows:
        for origin, (first, end) in json.loads(row["reads"]).items():
            if row["kind"] == "commit" and first > next_.get(origin, 0):
                verdict.faults.append(
                    f"commit {row['number']} jumps over records of {origin}: {next_.get(origin, 0)} to {first}"
                )
            next_[origin] = max(end, next_.get(origin, 0))


def _check_windows(verdict: Verdict, db: duckdb.DuckDBPyConnection, out: Path) -> None:
    late_events = _late(out / "late" / "events_per_minute", ["events"])
    late_revenue = _late(out / "late" / "revenue_per_minute", ["revenue"])
    verdict.counts["late rows"] = sum(each["events"] for each in late_events.values())
    intended = {
        (minute, type_): number
        for minute, type_, number in db.execute(
            "SELECT epoch_us(time_bucket(INTERVAL 1 minute, event_time)), event_type, count(*) FROM events JOIN records "
            f"USING (origin, origin_position) WHERE kind = '{LATE}' GROUP BY 1, 2"
        ).fetchall()
    }
    expected: dict[tuple[int, str], tuple[int, int, int]] = {}
    for minute, type_, number, users in db.execute(
        "SELECT epoch_us(time_bucket(INTERVAL 1 minute, event_time)), event_type, count(*), count(DISTINCT user_id) FROM events "
        "GROUP BY 1, 2"
    ).fetchall():
        late = late_events.get((minute, type_), {"events": 0, "users": 0})
        if number > late["events"]:
            # Users of late rows that also have rows in time can't be told apart, except in groups whose late rows are those
            # that were made late: they have users of their own.
            sure = late["events"] == 0 or late["events"] == intended.get((minute, type_))
            expected[minute, type_] = (
                number - late["events"],
                users - late["users"],
                0 if sure else late["users"],
            )
    found = latest_rows(_table(out / "metrics" / "events_per_minute"))
    rows = {
        (_us(row["window_start"]), row["event_type"]): (row["events"], row["unique_users"])
        for row in found.to_pylist()
    }
    verdict.counts["windows"] = len({minute for minute, _ in rows})
    verdict.counts["window rows"] = len(rows)
    verdict.counts["window rows with unsure users"] = sum(1 for *_, unsure in expected.values() if unsure)
    verdict.require("windows with several rows for a group", [1] * (found.num_rows - len(rows)))
    wrong = []
    for key in sorted({*rows, *expected}):
        events, users, unsure = expected.get(key, (0, 0, 0))
        got = rows.get(key, (0, 0))
        if got[0] != events or not users <= got[1] <= users + unsure:
            wrong.append(
                f"{_text(key)}: {got}, DuckDB says {(events, users)}" + (f" +{unsure}" if unsure else "")
            )
    verdict.require("rows of events_per_minute that are wrong", wrong)
    verdict.require(
        "rows of events_per_minute that are not final",
        found.filter(pc.invert(found.column("is_final"))).select(["window_start"]),
    )
    money = latest_rows(_table(out / "metrics" / "revenue_per_minute"))
    got_money = {
        (_us(row["window_start"]), row["event_type"], row["currency"]): row["revenue"]
        for row in money.to_pylist()
    }
    wrong = []
    wanted: dict[tuple[Any, ...], Decimal] = {}
    for minute, type_, currency, revenue in db.execute(
        "SELECT epoch_us(time_bucket(INTERVAL 1 minute, event_time)), event_type, currency, sum(revenue) FROM events "
        "WHERE revenue IS NOT NULL GROUP BY 1, 2, 3"
    ).fetchall():
        left = revenue - late_revenue.get((minute, type_, currency), {"revenue": Decimal(0)})["revenue"]
        if left:
            wanted[minute, type_, currency] = left
    for key in sorted({*got_money, *wanted}):
        if got_money.get(key, Decimal(0)) != wanted.get(key, Decimal(0)):
            wrong.append(f"{_text(key)}: {got_money.get(key)}, DuckDB says {wanted.get(key)}")
    verdict.require("rows of revenue_per_minute that are wrong", wrong)
    [cents] = _row(
        db,
        f"SELECT sum(cents) FROM records WHERE kind IN ('{EVENT}', '{LATE}')",
    )
    published = sum(got_money.values(), Decimal(0)) + sum(
        (each["revenue"] for each in late_revenue.values()), Decimal(0)
    )
    verdict.equal("revenue of all windows and late rows", int(published * 100), int(cents or 0))


def _late(root: Path, sums: list[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Returns the sums of late partial rows by window start and group, and how many users they have."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    users: dict[tuple[Any, ...], set[bytes]] = {}
    for row in _table(root).to_pylist():
        key = (_us(row["window_start"]), row["event_type"], *([row["currency"]] if "currency" in row else []))
        of_key = found.setdefault(key, dict.fromkeys(sums, 0))
        for name in sums:
            of_key[name] += row[name] or 0
        users.setdefault(key, set()).update(row.get("unique_users") or ())
    for key, of_key in found.items():
        of_key["users"] = len(users[key])
    return found


def _topic(broker: str, topic: str) -> pa.Table:
    """Reads the topic from its beginning to its end: partition, offset and hash of each record."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": "chaos-checker",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
    )
    partitions = sorted(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    open_, numbers, offsets, hashes = set(partitions), [], [], []
    while open_:
        for message in consumer.consume(10_000, 1.0):
            error = message.error()
            if error is None:
                numbers.append(message.partition())
                offsets.append(message.offset())
                hashes.append(xxhash.xxh3_64_intdigest(message.value()))
            elif error.code() == KafkaError._PARTITION_EOF:
                open_.discard(message.partition())
            else:
                raise RuntimeError(f"the topic can't be read: {error}")
    consumer.close()
    return pa.table(
        {
            "partition": pa.array(numbers, pa.int64()),
            "offset": pa.array(offsets, pa.int64()),
            "hash": pa.array(np.array(hashes, np.uint64)),
        }
    )


def _files(root: Path) -> list[str]:
    table = DeltaTable(str(root))
    return [str(root / path) for path in pa.table(table.get_add_actions()).column("path").to_pylist()]


def _table(root: Path) -> pa.Table:
    """Reads a table's present files with their own types; no rows if there is none."""
    if not DeltaTable.is_deltatable(str(root)):
        return pa.table({name: pa.array([], type_) for name, type_ in _NONE})
    parts = list(_parts(root))
    return (
        pa.concat_tables(parts, promote_options="permissive")
        if parts
        else pa.table({n: pa.array([], t) for n, t in _NONE})
    )


_NONE = (
    *(("window_start", pa.timestamp("us", "UTC")), ("window_shard", pa.int32()), ("pane_index", pa.int32())),
    *(("is_final", pa.bool_()), ("number", pa.int64())),
)


def _parts(root: Path) -> Iterator[pa.Table]:
    for path in _files(root):
        with pq.ParquetFile(path) as file:
            yield file.read()


def _row(db: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    [found] = db.execute(query).fetchall()
    return found


def _us(time: Any) -> int:
    return round(time.timestamp() * 1_000_000)


def _text(key: tuple[Any, ...]) -> str:
    return "/".join([str(np.datetime64(key[0], "us")), *map(str, key[1:])])
