"""The second half of the batch pipeline: a split's staged events without their losers to the lake's files and window partials."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import apache_beam as beam
import pyarrow as pa

from headrace.connectors.stage import read_stage
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES
from headrace.pipelines.pane_partials import PanePartials
from headrace.pipelines.read_stage_fn import Task, counted
from headrace.pipelines.work_folder import ProgressFile, Receipt, WorkFolder, receipt_from
from headrace.transforms.base import Kernel
from headrace.transforms.dedupe_records import pack, resolve, settle, unpack, unpack_records

RECEIPT, VERDICTS = b"R", b"V"
"""First byte of a message to a split: its receipt so far, or verdicts on its rows."""


class ResolveShardFn(beam.DoFn):
    """(shard, packed records) → (split number, packed verdicts)."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        for split, verdicts in pack(resolve(unpack_records(element[1]))):
            yield split, VERDICTS + verdicts


class FinishSplitFn(beam.DoFn):
    """(split number, its receipt and verdicts) → (first of the metrics that share panes, partial), if there are rows.

    Writes the split's files of the lake and of the quarantine, then its receipt. A retried bundle writes the same files again.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def setup(self) -> None:
        self._kernels: list[Kernel] = self._task.definition.after_dedupe()

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[str, pa.RecordBatch]]:
        split, messages = element[0], list(element[1])
        task = self._task
        work = WorkFolder(task.output)
        (so_far,) = (m[1:] for m in messages if m[:1] == RECEIPT)
        verdicts = unpack(m[1:] for m in messages if m[:1] == VERDICTS)
        receipt: Receipt = receipt_from(json.loads(so_far))
        before = counted(self._kernels)
        name = f"{task.name}-{split:06d}"
        lake = PartitionedWriter(
            task.events_root, partition="event_date", name=name, compression=task.compression
        )
        quarantine = QuarantineWriter(
            task.quarantine_root, f"{name}-finish", masked_stages=MASKED_STAGES, compression=task.compression
        )
        progress = ProgressFile(work, split, kind="finish")
        windows = PanePartials(task.definition)
        first_row = 0
        for staged in read_stage(work.stage(split)):
            batch, duplicates = settle(staged, verdicts, first_row)
            first_row += staged.num_rows
            quarantine.write(duplicates)
            rejected = duplicates.num_rows
            for kernel in self._kernels:
                if batch.num_rows:
                    batch, rejects = kernel(batch)
                    quarantine.write(rejects)
                    rejected += rejects.num_rows
            if batch.num_rows:
                lake.write(batch)
                windows.add(batch)
            progress.update(finished=staged.num_rows, rejected=rejected)
        receipt.events = lake.close()
        receipt.quarantine += quarantine.close()
        receipt.counts = dict(Counter(receipt.counts) + (counted(self._kernels) - before))
        progress.update(done=True)
        work.write_receipt(receipt)
        yield from windows.merged()
