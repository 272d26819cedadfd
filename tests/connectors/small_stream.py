"""A small stream for the committer's tests: readers, shards and their files, without a runner."""

import datetime as dt
from dataclasses import dataclass, field

import pyarrow as pa

from headrace.connectors.commit_state import CommitState, Mark
from headrace.connectors.stream_entries import (
    FilesEntry,
    LateEntry,
    MetricEntry,
    PollEntry,
    ShardEntry,
    pack,
)
from headrace.connectors.stream_source import Read
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA, TIME
from headrace.transforms.batches import conform
from headrace.transforms.rejects import rejected
from headrace.transforms.shard_state import MemoryState

NOON = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
NOON_US = 1_767_614_400_000_000
SHARDS = 2
APP = "job-1"


def event_rows(origin, positions):
    """Rows of the lake: of each position of an origin one event, a second apart."""
    rows = len(positions)
    times = [NOON + dt.timedelta(seconds=p) for p in positions]
    return conform(
        {
            "event_id": pa.array([f"{origin}-{p}" for p in positions]),
            "event_time": pa.array(times, TIME),
            "event_date": pa.array([t.date() for t in times], pa.date32()),
            "ingest_time": pa.array(times, TIME),
            "origin": pa.array([origin] * rows),
            "origin_position": pa.array(positions, pa.int64()),
            "user_id": pa.array(["token-of-jane"] * rows),
        },
        ENRICHED_SCHEMA,
        rows,
    )


@dataclass
class SmallStream:
    """Makes the packed entries of polls of ten records: positions ending in 0 are rejected by the reader, in 5 by a shard."""

    out: object
    readers: int = 1
    written: int = 0
    polls: dict = field(default_factory=dict)

    def poll(self, reader=0, origin=None, records=10, **more):
        """Returns the packed lists of the next poll of a reader: the reader's own, then one of each shard."""
        origin = origin or f"topic/{reader}"
        poll, first = self.polls.get(reader, (0, 0))
        self.polls[reader] = (poll + 1, first + records)
        positions = list(range(first, first + records))
        by_reader = [p for p in positions if p % 10 == 0]
        shards = [[p for p in positions if p % 10 and p % SHARDS == s] for s in range(SHARDS)]
        entry = PollEntry(
            reader,
            poll,
            records,
            (Read(origin, first, first + records, records),) if records else (),
            len(by_reader),
            {s: len(rows) for s, rows in enumerate(shards)},
            NOON_US + first,
            position=f"at {first + records}",
            receipt=f"receipt {reader}/{poll}",
            watermark=NOON_US + first * 1_000_000,
            behind=100 - first,
            **more,
        )
        lists = [[entry, *self.files([], origin, by_reader, "validate", "invalid")]]
        for shard, rows in enumerate(shards):
            lost = [p for p in rows if p % 10 == 5]
            kept = [p for p in rows if p % 10 != 5]
            lists.append(
                [
                    ShardEntry(reader, poll, shard, len(kept), len(lost)),
                    *self.files(kept, origin, lost, "dedupe", "duplicate"),
                ]
            )
        return [pack(entries) for entries in lists]

    def files(self, kept, origin, lost, stage, reason):
        self.written += 1
        name = f"{self.written:06d}"
        found = []
        if kept:
            writer = PartitionedWriter(self.out / "events", partition="event_date", name=name)
            writer.write(event_rows(origin, kept))
            found.append(FilesEntry("events", tuple(writer.close())))
        if lost:
            writer = QuarantineWriter(self.out / "quarantine", name, masked_stages=["dedupe"])
            columns = [n for n in event_rows(origin, lost).schema.names if n in QUARANTINE_SCHEMA.names]
            writer.write(rejected(event_rows(origin, lost).select(columns), stage, reason))
            found.append(FilesEntry("quarantine", tuple(writer.close())))
        return found


def metric(count, name="per_minute", start=NOON, pane=0):
    rows = pa.table(
        {
            "window_start": pa.array([start] * 2, TIME),
            "window_end": pa.array([start + dt.timedelta(minutes=1)] * 2, TIME),
            "page": pa.array(["/a", "/b"]).dictionary_encode(),
            "rows": pa.array([count, count + 1], pa.int64()),
            "pane_index": pa.array([pane] * 2, pa.int32()),
        }
    )
    return pack([MetricEntry.of(name, rows)])


def late(rows, name="per_minute", job=APP, reader=0, poll=7):
    table = pa.table(
        {
            "window_start": pa.array([NOON] * rows, TIME),
            "window_end": pa.array([NOON + dt.timedelta(minutes=1)] * rows, TIME),
            "users": pa.array([[b"0123456789abcdef"]] * rows, pa.large_list(pa.binary(16))),
            "reader": pa.array([reader] * rows, pa.int32()),
            "shard": pa.array([1] * rows, pa.int32()),
            "poll": pa.array([poll] * rows, pa.int64()),
            "job": pa.array([job] * rows),
        }
    )
    return pack([LateEntry.of(name, table)])


class Job:
    """The state of one job, which receives at 1, 2, 3, … µs."""

    def __init__(self, memory=None, epoch=1):
        self.memory = memory or MemoryState()
        self.state = CommitState(self.memory, epoch)
        self.now = 0

    def receive(self, *lists):
        for packed in lists:
            self.now += 1
            self.state.receive(packed, self.now)
        return self

    def ready(self):
        return self.state.ready(None)

    def commit(self, committer, drop=True):
        done = committer.commit(self.ready(), committed_at=NOON_US + self.now)
        if drop and done.mark is not None:
            self.state.drop(done.mark)
        return done


__all__ = [
    "APP",
    "ENRICHED_SCHEMA",
    "NOON",
    "NOON_US",
    "SHARDS",
    "Job",
    "Mark",
    "SmallStream",
    "event_rows",
    "late",
    "metric",
]
