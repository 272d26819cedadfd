"""The first half of a backfill's job: row groups of the archive to staged, masked events and hash records, date by date."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from apache_beam.pvalue import TaggedOutput

from headrace.connectors.archive_plan import ArchiveSplit
from headrace.connectors.atomic_file import replace_file
from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.read_parquet_columns import read_parquet_columns
from headrace.connectors.stage import StageWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES, Definition
from headrace.pipelines.read_stage_fn import counted
from headrace.pipelines.work_folder import ProgressFile, Receipt, WorkFolder
from headrace.transforms.base import Kernel
from headrace.transforms.batches import column
from headrace.transforms.decode_columns import DecodeColumnsKernel, seal_documents
from headrace.transforms.dedupe_records import Records, by_shard, hash_records

EPOCH = date(1970, 1, 1)
QUARANTINE_PARTITION = "backfill_date"
"""The date to which a rejected row counts."""


@dataclass(frozen=True)
class DatesTask:
    """What every worker needs to know about a job."""

    output: str
    first: date
    names: tuple[str, ...]
    """By date from the first: stem of its files' names, from its fingerprint."""
    last_takes_undated: bool
    """Rows without a readable event time count to the last date: their files say nothing about when they arrived."""
    definition: Definition
    mapping: FieldMapping | None
    compression: str
    shards: int

    @property
    def days(self) -> int:
        return len(self.names)

    def day(self, number: int) -> date:
        return date.fromordinal(self.first.toordinal() + number)

    def unit(self, split: int, number: int) -> int:
        """Returns the number that stands for a split's rows of one date; ascending with the splits within a date."""
        return split * self.days + number

    def reach(self, split: ArchiveSplit) -> tuple[int, int]:
        """Returns the numbers of the first and last date that a split's rows may count to."""
        if split.reach is None:
            return 0, self.days - 1
        low, high = ((day - self.first).days for day in split.reach)
        return max(low, 0), min(high, self.days - 1)

    def root(self, table: str, number: int) -> str:
        """Returns where a date's files of a table are staged."""
        root = Path(self.output) / "_work" / "tables" / table
        if table == "quarantine":
            root /= f"{QUARANTINE_PARTITION}={self.day(number).isoformat()}"
        return str(root)

    def stem(self, split: ArchiveSplit, number: int) -> str:
        """Returns the name of a split's files of one date, which does not depend on the other dates of the job."""
        place = f"{split.split.origin}:{split.split.start}".encode("utf-8", "surrogatepass")
        return f"{self.names[number]}-{xxhash.xxh3_64_hexdigest(place)}"


class ReadDatesFn(beam.DoFn):
    """(split) → main: (unit, receipt so far) for each date that has rows; ``records``: (date and shard, packed hash records).

    A row counts to the date of its event time; one whose event time can't be read to the date of its arrival. Rows of dates that
    are not the job's are counted as outside, and go no further. Receipts of splits are files: ``_work/splits/NUMBER.json``.
    """

    def __init__(self, task: DatesTask) -> None:
        self._task = task

    def setup(self) -> None:
        definition, mapped = self._task.definition, self._task.mapping is not None
        decode, *rest = definition.before_dedupe("parquet")
        columns = DecodeColumnsKernel(
            decode, schema=definition.schema, registry=definition.registry, mapped=mapped
        )
        self._kernels: list[Kernel] = [columns, *rest]

    def process(
        self, split: ArchiveSplit
    ) -> Iterator[tuple[int, bytes] | TaggedOutput[Literal["records"], tuple[int, bytes]]]:
        task, number = self._task, split.split.index
        work = WorkFolder(task.output)
        progress = ProgressFile(work, number)
        before = counted(self._kernels)
        rows_in = outside = 0
        low, high = task.reach(split)
        dates: dict[int, _Date] = {}

        def of(day: int) -> _Date:
            if day not in dates:
                dates[day] = _Date(task, split, day, work)
            return dates[day]

        blocks = read_parquet_columns(
            split.split,
            ingest_time=split.ingest_time,
            mapping=task.mapping,
            ingest_column=split.ingest_column,
            groups=split.groups,
            skip=split.skip,
        )
        for block in blocks:
            rows_in += block.records
            batch, rejected = block.raw, 0
            for kernel in self._kernels:
                batch, rejects = kernel(batch)
                rejects = seal_documents(rejects, block.raw, task.definition.key)
                for day, rows in self._by_day(rejects, low, high):
                    if day is None:
                        outside += rows.num_rows
                    else:
                        rejected += rows.num_rows
                        of(day).reject(rows)
                if kernel.name == "validate":
                    batch, left = self._within(batch, low, high)
                    outside += left
                if not batch.num_rows:
                    break
            for day, rows in self._by_day(batch, low, high):
                if day is None:
                    raise AssertionError("a row outside of the job's dates came through")
                of(day).accept(rows)
            progress.update(rows=block.records, rejected=rejected, bytes_read=block.read_bytes)
        units: dict[str, int] = {}
        counts = dict(counted(self._kernels) - before)
        for day in sorted(dates):
            unit = task.unit(number, day)
            found = dates[day].close()
            units[str(unit)] = found.rows_in
            found.counts, counts = counts, {}  # With the split's first date: they are not told apart by date.
            for shard, packed in dates[day].records():
                yield TaggedOutput("records", (day * task.shards + shard, packed))
            yield unit, b"R" + json.dumps({"stem": dates[day].stem, **asdict(found)}).encode()
        receipt = {"rows_in": rows_in, "outside": outside, "units": units}
        replace_file(work.root / "splits" / f"{number:06d}.json", json.dumps(receipt).encode())
        progress.update(done=True)

    def _within(self, batch: pa.RecordBatch, low: int, high: int) -> tuple[pa.RecordBatch, int]:
        """Returns the events of the dates that count, and how many others there are."""
        numbers = self._numbers(column(batch, "event_date"))
        keep = (numbers >= low) & (numbers <= high)
        kept = int(keep.sum())
        return (batch if kept == batch.num_rows else batch.filter(pa.array(keep))), batch.num_rows - kept

    def _by_day(
        self, batch: pa.RecordBatch, low: int, high: int
    ) -> Iterator[tuple[int | None, pa.RecordBatch]]:
        """Yields (number of the date in the job, its rows); None stands for all dates that don't count."""
        if not batch.num_rows:
            return
        days = column(batch, "event_date")
        if days.null_count:
            arrived = column(batch, "ingest_time").cast(pa.date32())
            if self._task.last_takes_undated:
                arrived = pa.array([self._task.day(self._task.days - 1)] * batch.num_rows, pa.date32())
            days = pc.coalesce(days, arrived)
        numbers = self._numbers(days)
        numbers = np.where((numbers >= low) & (numbers <= high), numbers, -1)
        for number in np.unique(numbers).tolist():
            rows = batch if (numbers == number).all() else batch.filter(pa.array(numbers == number))
            yield (None if number < 0 else number), rows

    def _numbers(self, days: pa.Array) -> np.ndarray:
        """Numbers of dates in the job, from 0; those of other dates lie outside of its length."""
        numbers: np.ndarray = (
            days.cast(pa.int32()).to_numpy(zero_copy_only=False) - (self._task.first - EPOCH).days
        )
        return numbers


class _Date:
    """What one split has of one date."""

    def __init__(self, task: DatesTask, split: ArchiveSplit, day: int, work: WorkFolder) -> None:
        self._task, self._unit = task, task.unit(split.split.index, day)
        self.stem = task.stem(split, day)
        self._stage = StageWriter(work.stage(self._unit))
        self._quarantine = QuarantineWriter(
            task.root("quarantine", day),
            f"{self.stem}-read",
            masked_stages=MASKED_STAGES,
            compression=task.compression,
        )
        self._records: list[Records] = []
        self._rows = 0

    def accept(self, rows: pa.RecordBatch) -> None:
        self._records.append(hash_records(rows, self._unit, self._stage.rows))
        self._stage.write(rows)
        self._rows += rows.num_rows

    def reject(self, rows: pa.RecordBatch) -> None:
        self._quarantine.write(rows)
        self._rows += rows.num_rows

    def close(self) -> Receipt:
        self._stage.close()
        return Receipt(self._unit, self._rows, quarantine=self._quarantine.close())

    def records(self) -> Iterator[tuple[int, bytes]]:
        if self._records:
            yield from by_shard(np.concatenate(self._records), self._task.shards)
