"""All ready-made window tables over events in memory: ours, and one DuckDB query each, in one process and one thread.

    python -m benchmarks.windows [--events 1000000] [--repeat 3]

Prints CPU time per event by step, and the ratio; medians of the repetitions, which take turns. Both start from the lake's
columns, as they are after the batch pipeline; DuckDB's results are not written either. Exit code 1 if a table has another number
of rows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from benchmarks.window_queries import QUERIES
from headrace.pipelines.batch import run_batch
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.definition import Definition
from headrace.pipelines.pane_partials import PanePartials
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.simulator.simulate import simulate
from headrace.transforms.batches import as_type
from headrace.transforms.keys import Key
from headrace.transforms.window_partials import finish

BATCH_ROWS = 16_384


def lake(events: int, work: Path) -> list[pa.RecordBatch]:
    """Returns simulated events as the batch pipeline leaves them, as batches of the hot path."""
    simulation = simulate(events, 5, span=timedelta(hours=1))
    (work / "events.jsonl").write_bytes(b"".join(simulation))
    Key(work / "key", create=True)
    now = datetime.fromisoformat(simulation.summary.to_dict()["now"])
    config = BatchConfig(
        input=[str(work / "events.jsonl")],
        output=str(work / "out"),
        key_file=str(work / "key"),
        now=now,
        metrics={},
    )
    run_batch(config)
    table = DeltaTable(str(work / "out" / "events")).to_pyarrow_table(columns=ENRICHED_SCHEMA.names)
    columns = [pa.chunked_array([as_type(c, f.type) for c in table[f.name].chunks]) for f in ENRICHED_SCHEMA]
    whole = pa.table(columns, schema=ENRICHED_SCHEMA).sort_by([("origin_position", "ascending")])
    found: list[pa.RecordBatch] = (
        whole.unify_dictionaries().combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    )
    return found


def ours(
    batches: Sequence[pa.RecordBatch], definition: Definition
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns CPU seconds by step, and the rows of each table."""
    windows, at = PanePartials(definition), [time.process_time()]
    for batch in batches:
        windows.add(batch)
    at.append(time.process_time())
    merged = dict(windows.merged())
    at.append(time.process_time())
    rows = {
        name: finish(merged[first], definition.metrics[name]).num_rows
        for first, names in definition.shared_panes().items()
        for name in names
    }
    at.append(time.process_time())
    steps = ("by batch", "merged", "finished")
    return {name: end - start for name, start, end in zip(steps, at, at[1:], strict=False)}, rows


def peer(batches: Sequence[pa.RecordBatch]) -> tuple[float, dict[str, int]]:
    """Returns CPU seconds of the queries, and the rows of each."""
    db = duckdb.connect(config={"threads": 1})
    table = pa.Table.from_batches(batches)
    times = table.column("event_time").cast(pa.timestamp("us"))
    source = table.set_column(table.schema.get_field_index("event_time"), "event_time", times)
    db.register("source", source)
    db.execute("CREATE TABLE events AS SELECT * FROM source")
    start = time.process_time()
    rows = {name: len(db.sql(query).to_arrow_table()) for name, query in QUERIES.items()}
    return time.process_time() - start, rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.windows", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        batches = lake(given.events, Path(folder))
        definition = Definition(Key(Path(folder) / "key"))
    events = sum(batch.num_rows for batch in batches)
    steps: list[dict[str, float]] = []
    theirs: list[float] = []
    for _ in range(given.repeat):
        seconds, rows = ours(batches, definition)
        steps.append(seconds)
        seconds_peer, rows_peer = peer(batches)
        theirs.append(seconds_peer)
        if rows != rows_peer:
            print(f"tables differ: {rows} and {rows_peer}", file=sys.stderr)
            return 1
    print(f"{len(definition.metrics)} window tables over {events:,} events of an hour, CPU µs an event")
    for name in steps[0]:
        print(f"  {name:10s} {median(s[name] for s in steps) / events * 1e6:6.2f}")
    total = median(sum(s.values()) for s in steps)
    print(f"  {'ours':10s} {total / events * 1e6:6.2f}")
    print(f"  {'DuckDB':10s} {median(theirs) / events * 1e6:6.2f}   ({median(theirs) / total:.1f} × ours)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
