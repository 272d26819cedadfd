"""The second half of a backfill's job: a date's staged events of one split, without their losers, to files and window partials."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from headrace.connectors.atomic_file import AtomicFile, naming, replace_file
from headrace.connectors.stage import read_stage
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.backfill.read_dates_fn import DatesTask
from headrace.pipelines.definition import MASKED_STAGES
from headrace.pipelines.finish_split_fn import RECEIPT, VERDICTS
from headrace.pipelines.pane_partials import PanePartials
from headrace.pipelines.read_stage_fn import counted
from headrace.pipelines.work_folder import ProgressFile, WorkFolder, receipt_from
from headrace.transforms.base import Kernel
from headrace.transforms.dedupe_records import settle, unpack
from headrace.transforms.window_definitions import Windows
from headrace.transforms.window_partials import merge

Part = tuple[tuple[int, str], pa.RecordBatch]


class FinishDatesFn(beam.DoFn):
    """(unit, its receipt and verdicts) → ((number of the date, first of the metrics that share panes), partial).

    Writes the unit's files of the lake and of the quarantine, then its receipt. A retried bundle writes the same files again.
    """

    def __init__(self, task: DatesTask) -> None:
        self._task = task

    def setup(self) -> None:
        self._kernels: list[Kernel] = self._task.definition.after_dedupe()

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Part]:
        unit, messages = element[0], list(element[1])
        task = self._task
        day = unit % task.days
        work = WorkFolder(task.output)
        (so_far,) = (m[1:] for m in messages if m[:1] == RECEIPT)
        verdicts = unpack(m[1:] for m in messages if m[:1] == VERDICTS)
        fields = json.loads(so_far)
        stem = fields.pop("stem")
        receipt = receipt_from(fields)
        before = counted(self._kernels)
        lake = PartitionedWriter(
            task.root("events", day), partition="event_date", name=stem, compression=task.compression
        )
        quarantine = QuarantineWriter(
            task.root("quarantine", day),
            f"{stem}-finish",
            masked_stages=MASKED_STAGES,
            compression=task.compression,
        )
        progress = ProgressFile(work, unit, kind="finish")
        windows = PanePartials(task.definition)
        first_row = 0
        for staged in read_stage(work.stage(unit)):
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
        replace_file(work.root / "receipts" / f"{unit:09d}.json", json.dumps(asdict(receipt)).encode())
        for first, part in windows.merged():
            yield (day, first), part


class WritePanesFn(beam.DoFn):
    """((number of the date, first of the metrics), partials) → the path of their sum, once it is written below the work folder."""

    def __init__(self, task: DatesTask) -> None:
        self._task = task

    def process(self, element: tuple[tuple[int, str], Iterable[pa.RecordBatch]]) -> Iterator[str]:
        (day, first), partials = element
        merged = merge(list(partials), self._task.definition.metrics[first])
        path = panes_path(self._task, day, first)
        write_panes(path, merged)
        yield str(path)


def panes_path(task: DatesTask, day: int, first: str) -> Path:
    """Returns where the panes of a date wait for the commit."""
    folder = WorkFolder(task.output).root / "panes" / task.day(day).isoformat()
    return folder / panes_name(first, task.definition.metrics[first])


def panes_name(first: str, windows: Windows) -> str:
    """Returns the name of a file of panes; panes of another definition never have it."""
    return f"{first}-{hashlib.blake2b(repr(windows).encode(), digest_size=4).hexdigest()}.arrow"


def write_panes(path: Path, panes: pa.RecordBatch) -> None:
    """Writes panes as an Arrow IPC file, whole or not at all.

    Raises:
        OutputError: the disk refused.
    """
    file = AtomicFile(path)
    with (
        naming(path),
        pa.OSFile(str(file.temporary), "wb") as sink,
        pa.ipc.new_file(sink, panes.schema) as writer,
    ):
        writer.write_batch(panes)
    file.commit()


def read_panes(path: Path) -> pa.RecordBatch:
    """Reads what :func:`write_panes` wrote."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.get_batch(0)
