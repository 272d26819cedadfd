"""Exact deduplication of an unbounded PCollection by event id; :class:`Deduplicate` applies it."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Results
from headrace.transforms.batches import column
from headrace.transforms.beam_shard_state import StatefulShardFn
from headrace.transforms.coders import register_coders
from headrace.transforms.dedupe_records import STAGE, rows_by_shard
from headrace.transforms.dedupe_shard import SLOTS, DedupeShard
from headrace.transforms.hashing import int64_values, mix64, present
from headrace.transforms.shard_state import ShardState

WITNESSES = 16
"""Batches that must agree on how far ingest time has come."""


class DeduplicateStream(beam.PTransform):
    """Keeps the first event to arrive for each event_id; arguments, input and output as in :class:`Deduplicate`."""

    def __init__(self, shards: int, horizon: timedelta, max_disorder: timedelta) -> None:
        super().__init__()
        self._shards = shards
        self._horizon = horizon
        self._max_disorder = max_disorder

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        if not isinstance(batches.windowing.windowfn, GlobalWindows):
            raise ConfigError(
                f"Deduplicate on unbounded input in {type(batches.windowing.windowfn).__name__} would forget ids with "
                "their window, and the runner would drop late rows unseen; apply it before that WindowInto"
            )
        register_coders()
        step = f"{self.label}-{uuid.uuid4().hex}"
        done = (
            batches
            | "CutByShard" >> beam.ParDo(_CutFn(self._shards)).with_output_types(tuple[int, pa.RecordBatch])
            | "Decide"
            >> beam.ParDo(_DecideFn(step, self._horizon, self._max_disorder))
            .with_output_types(pa.RecordBatch, rejected=pa.RecordBatch)
            .with_outputs("rejected", main="accepted")
        )
        return Results(done.accepted, done.rejected)


class _CutFn(beam.DoFn):
    """Cuts each batch into slices by the hash of the id; rows keep their order within a shard."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from rows_by_shard(batch, self._shards)


class _DecideFn(StatefulShardFn, slots=SLOTS):
    """Decides the rows of one shard in the order of arrival.

    No reader tells its position here, so it is taken from the rows: each batch is a witness that ingest time has come to its
    middle row less ``max_disorder``, and what all of the latest ``WITNESSES`` (by a hash, so that replays agree) have passed
    counts. So single rows with a wrong clock make no id expire.
    """

    def __init__(self, step: str, horizon: timedelta, max_disorder: timedelta) -> None:
        self._step = step
        self._horizon = horizon
        self._disorder_us = max_disorder // timedelta(microseconds=1)

    def handle(
        self, key: int, value: pa.RecordBatch, state: ShardState
    ) -> Iterator[pa.RecordBatch | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        shard = DedupeShard(self._step, key, readers=WITNESSES, horizon=self._horizon)
        reader, position = self._witness(value)
        accepted, rejected = shard.decide(value, state, reader=reader, ingest_position=position)
        Metrics.counter(f"headrace.{STAGE}", "accepted").inc(accepted.num_rows)
        Metrics.counter(f"headrace.{STAGE}", "rejected").inc(rejected.num_rows)
        Metrics.counter(f"headrace.{STAGE}", "rebuilt_ids").inc(shard.rebuilt_ids)
        if accepted.num_rows:
            yield accepted
        if rejected.num_rows:
            yield TaggedOutput("rejected", rejected)

    def _witness(self, batch: pa.RecordBatch) -> tuple[int, int | None]:
        """Returns which of the witnesses this batch is, and its position."""
        times = column(batch, "ingest_time")
        known = int64_values(times)[present(times)]
        if not len(known):
            return 0, None
        number = mix64(known.view(np.uint64).sum(keepdims=True), 1)[0] % np.uint64(WITNESSES)
        middle = int(np.partition(known, (len(known) - 1) // 2)[(len(known) - 1) // 2])
        return int(number), middle - self._disorder_us
