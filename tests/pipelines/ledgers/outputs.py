"""Finished outputs for tests of the ledger, and ways to tamper with them behind its back."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, write_deltalake

from headrace.connectors.stream_output import JobRecord, open_stream_output
from tests.pipelines.runs import NOW, event, lines, run
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import Local, make_task


def write_input(path: Path, rows: int = 60) -> Path:
    """Writes events of one hour; every tenth has no user, every fifteenth is there twice, and there are blank lines."""
    events = []
    for number in range(rows):
        one = event(number)
        if number % 10 == 3:
            del one["user_id"]
        events.append(one)
        if number % 15 == 7:
            events.append(one)
    text = lines(events).splitlines(keepends=True)
    path.write_bytes(b"".join(line + (b"\n" if i % 20 == 5 else b"") for i, line in enumerate(text)))
    return path


def make_batch(folder: Path, key: Path, rows: int = 60) -> Path:
    """Runs a batch in this process."""
    run(write_input(folder / "in.jsonl", rows), folder / "out", key)
    return folder / "out"


def make_stream(folder: Path, key: Path, rows: int = 60) -> Path:
    """Runs a stream over states in memory to the end of its source."""
    out = folder / "out"
    path = folder / "in.jsonl"
    path.write_bytes(
        b"".join(line for line in write_input(path, rows).read_bytes().splitlines(True) if line.strip())
    )
    task = make_task(out, LineSource(str(path), NOW, partitions=2, per_poll=7), key)
    with open_stream_output(out) as output:
        output.add(
            JobRecord(task.job, "2026-01-05T12:00:00Z", "lines", {"window_shards": 2, "finished": True}, {})
        )
    Local(task).run()
    return out


def drop_row(out: Path, table: str, row: int = 0) -> pa.Table:
    """Takes one row out of a table by a commit of its own, and returns it."""
    whole = DeltaTable(str(out / table)).to_pyarrow_table()
    place = whole.slice(row, 1)
    origin, position = (place.column(n)[0].as_py() for n in ("origin", "origin_position"))
    DeltaTable(str(out / table)).delete(f"origin = '{origin}' AND origin_position = {position}")
    return place


def add_rows(out: Path, table: str, rows: pa.Table) -> None:
    """Adds rows to a table by a commit of its own."""
    write_deltalake(str(out / table), rows, mode="append", commit_properties=CommitProperties())


def change_ledger(out: Path, **changes: int) -> None:
    """Adds to counts of a batch's ledger, and lets it say that it balances."""
    path = out / "ledger.json"
    said = json.loads(path.read_bytes())
    for name, more in changes.items():
        said[name] += more
    rejected = sum(sum(reasons.values()) for reasons in said["rejected"].values())
    said["balanced"] = said["rows_in"] == said["accepted"] + rejected
    path.write_text(json.dumps(said))


def change_stream_ledger(out: Path, number: int, column: str, more: int) -> None:
    """Adds to a count in one row of a stream's ledger, in its file; the log gets the file's new size."""
    root = out / "ledger"
    for path in DeltaTable(str(root)).file_uris():
        where = Path(path.removeprefix("file://"))
        found = pq.read_table(where, partitioning=None)
        if number not in found.column("number").to_pylist():
            continue
        rows = found.to_pylist()
        for row in rows:
            if row["number"] == number:
                row[column] += more
        os.unlink(where)
        pq.write_table(pa.Table.from_pylist(rows, found.schema), where)
