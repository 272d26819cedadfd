"""What a plan has to know of the records, from what the batch made of them."""

from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.pipelines.definition import MASKED_STAGES
from headrace.pipelines.verify.disturb import UNTIMED
from headrace.pipelines.verify.input_records import InputRecords
from headrace.pipelines.verify.stored_tables import create_view, find_tables
from headrace.schemas.errors import ConfigError, UntrustedRunError

PAST_READER = "(" + ", ".join(f"'{stage}'" for stage in MASKED_STAGES) + ")"
"""SQL list of the stages after a stream's reader, whose clock has seen what they reject."""
_LATE_STAGE = "stage <> 'dedupe'"


class Facts(NamedTuple):
    """Of each record, in the order of the input."""

    times: npt.NDArray[np.int64]
    """Event time in µs of those that a reader lets pass, else ``UNTIMED``."""
    repeatable: npt.NDArray[np.bool_]
    """False for events without an id of their own: in a stream each sending of one is another event."""
    after: npt.NDArray[np.int64]
    """For one whose id is in conflict, the record that won in the batch; else -1."""


def register_records(connection: duckdb.DuckDBPyConnection, records: InputRecords) -> None:
    """Makes a table ``records`` (number, origin, position) of them."""
    count = len(records)
    table = pa.table(
        {
            "number": pa.array(np.arange(count), pa.int64()),
            "origin": records.origins,
            "position": pa.array(records.positions, pa.int64()),
        }
    )
    connection.register("records", table)


def open_outputs(connection: duckdb.DuckDBPyConnection, side: str, out: Path) -> set[str]:
    """Makes a view ``SIDE/NAME`` of each table of an output; returns the names."""
    tables = find_tables(out)
    for name, table in tables.items():
        create_view(connection, f"{side}/{name}", table)
    return set(tables)


def read_facts(connection: duckdb.DuckDBPyConnection, records: InputRecords) -> Facts:
    """Reads the facts of all records from the views ``batch/events`` and ``batch/quarantine``.

    Raises:
        UntrustedRunError: the batch has a record twice.
        ConfigError: the batch has accepted nothing, so that nothing could be proven.
    """
    connection.execute(
        f"""
        CREATE TEMP TABLE passed AS
        SELECT origin, origin_position, event_time, event_id, id_generated, NULL AS stage, NULL AS reason FROM "batch/events"
        UNION ALL
        SELECT origin, origin_position, event_time, event_id, id_generated, stage, reason FROM "batch/quarantine"
        WHERE stage IN {PAST_READER}
        """
    )
    found = connection.execute(
        f"""
        WITH placed AS (
            SELECT r.number, p.* FROM records r LEFT JOIN passed p ON p.origin = r.origin AND p.origin_position = r.position
        ), winners AS (
            SELECT event_id, number FROM placed WHERE event_id IS NOT NULL AND (stage IS NULL OR {_LATE_STAGE})
        )
        SELECT placed.number, coalesce(epoch_us(event_time), {UNTIMED}) AS time, coalesce(id_generated, false) AS made,
               coalesce(winners.number, -1) AS after
        FROM placed LEFT JOIN winners ON reason = 'duplicate_conflict' AND winners.event_id = placed.event_id
        """
    ).fetchnumpy()
    order = np.argsort(found["number"])
    if not np.array_equal(found["number"][order], np.arange(len(records))):
        raise UntrustedRunError(
            f"the batch's tables have {len(order):,} rows for {len(records):,} records: a record is there twice; report it as a bug"
        )
    accepted = connection.execute('SELECT count(*) FROM "batch/events"').fetchone()
    if accepted == (0,):
        raise ConfigError(
            "the batch has accepted none of the records, so there is nothing to prove. If the input is an archive, give the end of "
            "its data with --now; `headrace run batch` says why records are rejected"
        )
    times, made, after = (np.asarray(found[name])[order] for name in ("time", "made", "after"))
    return Facts(times.astype(np.int64), ~made.astype(bool), after.astype(np.int64))
