"""The first half of the batch pipeline: a split of the input to staged, masked events and hash records."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from headrace.connectors.inputs import Split
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.raw_blocks import Block
from headrace.connectors.read_parquet_columns import ColumnBlock, read_parquet_columns
from headrace.connectors.read_split import read_split
from headrace.connectors.stage import StageWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES, Definition
from headrace.pipelines.work_folder import ProgressFile, Receipt, WorkFolder
from headrace.transforms.base import Kernel
from headrace.transforms.decode_columns import DecodeColumnsKernel, seal_documents
from headrace.transforms.dedupe_records import Records, by_shard, hash_records


@dataclass(frozen=True)
class Task:
    """What every worker needs to know about a run."""

    output: str
    events_root: str
    quarantine_root: str
    name: str
    """Stem of the files' names: the run's fingerprint."""
    now: datetime
    definition: Definition
    mapping: FieldMapping | None
    compression: str
    max_record_bytes: int
    shards: int


class ReadStageFn(beam.DoFn):
    """(split) → main: (split number, receipt so far); ``records``: (shard, packed hash records).

    Accepted rows lie in the split's stage file, rejected ones in its quarantine file: rows never enter a shuffle. A retried
    bundle writes the same files again.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def setup(self) -> None:
        self._kernels: dict[str, list[Kernel]] = {}

    def process(
        self, split: Split
    ) -> Iterator[tuple[int, bytes] | TaggedOutput[Literal["records"], tuple[int, bytes]]]:
        task = self._task
        kernels = self._kernels.get(split.format)
        if kernels is None:
            kernels = self._kernels[split.format] = kernels_for(task, split.format)
        work = WorkFolder(task.output)
        progress = ProgressFile(work, split.index)
        before = counted(kernels)
        receipt = Receipt(split.index)
        records: list[Records] = []
        stage = StageWriter(work.stage(split.index))
        quarantine = QuarantineWriter(
            task.quarantine_root,
            f"{task.name}-{split.index:06d}-read",
            masked_stages=MASKED_STAGES,
            compression=task.compression,
        )
        for block in _blocks(task, split):
            receipt.rows_in += block.records
            batch, rejected = block.raw, 0
            for kernel in kernels:
                batch, rejects = kernel(batch)
                rejected += rejects.num_rows
                quarantine.write(seal_documents(rejects, block.raw, task.definition.key))
                if not batch.num_rows:
                    break
            if batch.num_rows:
                records.append(hash_records(batch, split.index, stage.rows))
                stage.write(batch)
            progress.update(rows=block.records, rejected=rejected, bytes_read=block.read_bytes)
        stage.close()
        receipt.quarantine = quarantine.close()
        receipt.counts = dict(counted(kernels) - before)
        progress.update(done=True)
        if records:
            for shard, packed in by_shard(np.concatenate(records), task.shards):
                yield TaggedOutput("records", (shard, packed))
        yield split.index, b"R" + json.dumps(asdict(receipt)).encode()


def kernels_for(task: Task, format_: str) -> list[Kernel]:
    """Returns the kernels from records to masked events; those for Parquet take its columns, if no mapping needs documents."""
    kernels = task.definition.before_dedupe(format_)
    if format_ == "parquet" and task.mapping is None:
        definition = task.definition
        kernels = [
            DecodeColumnsKernel(kernels[0], schema=definition.schema, registry=definition.registry),
            *kernels[1:],
        ]
    return kernels


def _blocks(task: Task, split: Split) -> Iterator[Block | ColumnBlock]:
    if split.format == "parquet" and task.mapping is None:
        return read_parquet_columns(split, ingest_time=task.now)
    schema = task.definition.registry.get(task.definition.schema) if task.definition.schema else None
    return read_split(
        split,
        ingest_time=task.now,
        mapping=task.mapping,
        schema=schema.document if schema else None,
        max_record_bytes=task.max_record_bytes,
    )


def counted(kernels: list[Kernel]) -> Counter[str]:
    """Returns what the kernels have counted since they were set up, as ``stage.name``."""
    total: Counter[str] = Counter()
    for kernel in kernels:
        total.update({f"{kernel.name}.{name}": count for name, count in kernel.counts.items()})
    return total
