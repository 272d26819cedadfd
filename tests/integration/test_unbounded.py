"""AggregateWindows and Sessionize on unbounded input, on real runners: nothing is dropped, and what is in time is as in a batch."""

import random
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from headrace.runners.options import prepare
from headrace.runners.servers.flink import FlinkCluster
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.transforms.aggregate_windows import AggregateWindows
from headrace.transforms.session_definitions import Sessions
from headrace.transforms.session_partials import finish, merge, partial
from headrace.transforms.sessionize import Sessionize
from headrace.transforms.window_definitions import Count
from tests.runners.job import FakeJob

pytestmark = pytest.mark.integration

START = datetime(2024, 5, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LATENESS = 10 * MINUTE
STEPS = 60


class SaveFn(beam.DoFn):
    """Writes each batch to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def process(self, batch: pa.RecordBatch) -> None:
        pq.write_table(pa.Table.from_batches([batch]), f"{self._folder}/{uuid.uuid4().hex}.parquet")


def rows_of(step: int) -> list[dict[str, Any]]:
    """Rows around minute ``step``; some are so old that they come late."""
    chance = random.Random(step)
    back = [chance.choice([0, 1, 5, 40]) if step > 40 else chance.choice([0, 1, 5]) for _ in range(20)]
    return [
        {
            "event_time": START + (max(0, step - b) + chance.random()) * MINUTE,
            "event_id": f"{step}-{i}",
            "event_type": chance.choice("ab"),
            "user_id": f"u{chance.randint(0, 30)}",
        }
        for i, b in enumerate(back)
    ]


def batch_of(step: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows_of(step), schema=ENRICHED_SCHEMA)


def build(pipeline: beam.Pipeline, out: Path) -> None:
    start = START.timestamp()
    stream = test_stream.TestStream(coder=beam.coders.BytesCoder()).advance_watermark_to(start)
    for step in range(STEPS):
        first = min(r["event_time"] for r in rows_of(step)).timestamp()
        stream = stream.add_elements([TimestampedValue(b"%d" % step, first)]).advance_watermark_to(
            start + 60 * step + 1
        )
    steps = pipeline | stream.advance_watermark_to_infinity().with_output_types(bytes)
    batches = steps | beam.Map(lambda step: batch_of(int(step))).with_output_types(pa.RecordBatch)
    windows = batches | AggregateWindows(
        measures={"n": Count()}, allowed_lateness=LATENESS, early=timedelta(0), shards=2
    )
    sessions = batches | Sessionize(timedelta(minutes=3), allowed_lateness=LATENESS, shards=2)
    regrouped = (
        sessions.accepted
        | "Key" >> beam.Map(lambda batch: (0, batch)).with_output_types(tuple[int, pa.RecordBatch])
        | "Minutes" >> beam.WindowInto(FixedWindows(60))
        | beam.GroupByKey()
        | "Ungroup" >> beam.FlatMap(lambda group: group[1]).with_output_types(pa.RecordBatch)
    )
    for name, found in {
        "windows": windows.accepted,
        "late": windows.late,
        "sessions": sessions.accepted,
        "late_rows": sessions.late,
        "regrouped": regrouped,
    }.items():
        (out / name).mkdir()
        _ = found | f"Save {name}" >> beam.ParDo(SaveFn(out / name))


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for path in folder.iterdir() for row in pq.read_table(path, partitioning=None).to_pylist()]


def check(out: Path, *, least_late: int) -> None:
    """Holds what came out against plain Python over all rows.

    Args:
        least_late: how many rows are late at least; a runner that takes everything in before its watermark moves has none.
    """
    every = [r for step in range(STEPS) for r in rows_of(step)]
    expected = Counter((r["event_time"].replace(second=0, microsecond=0), r["event_type"]) for r in every)
    final = [r for r in read(out / "windows") if r["is_final"]]
    found = Counter({(r["window_start"], r["event_type"]): r["n"] for r in final})
    assert len(found) == len(final)
    late: Counter[tuple[Any, ...]] = Counter()
    for r in read(out / "late"):
        late[r["window_start"], r["event_type"]] += r["rows"]
    assert found + late == expected
    assert sum(late.values()) >= least_late
    late_rows = {r["event_id"] for r in read(out / "late_rows")}
    assert len(late_rows) >= least_late
    in_time = [r for r in every if r["event_id"] not in late_rows]
    sessions = Sessions(timedelta(minutes=3))
    whole = pa.RecordBatch.from_pylist(in_time, schema=ENRICHED_SCHEMA)
    oracle = finish(merge([partial(whole, sessions)], sessions), sessions).to_pylist()
    assert sorted(map(str, read(out / "sessions"))) == sorted(map(str, oracle))
    assert len(read(out / "regrouped")) == len(oracle)


@pytest.mark.usefixtures("prism_program")
def test_on_prism(tmp_path: Path) -> None:
    options = prepare(["--runner=prism", "--prism_log_level=error"], FakeJob(), streaming=True).options
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, tmp_path)
    check(tmp_path, least_late=20)


def test_on_flink(tmp_path: Path, flink: FlinkCluster) -> None:
    args = [
        "--runner=flink",
        f"--job_endpoint={flink.job_endpoint}",
        f"--flink-rest={flink.rest_url}",
        "--environment_type=LOOPBACK",
    ]
    options = prepare(args, FakeJob(paths={}), streaming=True).options
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, tmp_path)
    check(tmp_path, least_late=0)
