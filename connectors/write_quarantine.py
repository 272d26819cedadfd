"""The quarantine's Parquet files: every rejected row, by the date it reached us, without PII in clear."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.connectors.write_lake import PartitionedWriter, WrittenFile
from headrace.schemas.columns import QUARANTINE_SCHEMA
from headrace.transforms.batches import conform, mask_of, plain
from headrace.transforms.rejects import UNMASKED

PARTITION = "ingest_date"
QUARANTINE_TABLE_SCHEMA = QUARANTINE_SCHEMA.append(pa.field(PARTITION, pa.date32()))
"""Columns of the quarantine table: ``QUARANTINE_SCHEMA`` and the UTC date of ``ingest_time``."""


class QuarantineWriter:
    """Writes rows of ``QUARANTINE_SCHEMA`` into ``ROOT/ingest_date=DATE/part-NAME.parquet``.

    Values, row count and the order of rows within a date are unchanged. It is the last guard before the disk: a row that
    was rejected before masking and still holds a sensitive column stops the run.

    Input: batches with the columns of ``QUARANTINE_SCHEMA``; ``ingest_time``, ``stage`` and ``reason`` are never null.
    Delivery: as :class:`~headrace.connectors.write_lake.PartitionedWriter`.

    Args:
        root: the table's folder.
        name: stem that is unique to this writer and equal in a rerun; letters, digits, ``_`` and ``-``.
        masked_stages: stages after MaskPii, whose rows hold masked values in the sensitive columns.
        compression: ``zstd``, ``snappy`` or ``none``.

    Raises:
        ConfigError: an argument is out of range.
        OutputError: the disk refused; no half file has a final name.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        *,
        masked_stages: Collection[str] = (),
        compression: str = "zstd",
    ) -> None:
        self._root = Path(root)
        self._masked = pa.array(sorted(masked_stages), pa.string())
        self._writer = PartitionedWriter(root, partition=PARTITION, name=name, compression=compression)

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes the rows in; an empty batch is nothing.

        Raises:
            AssertionError: a sensitive column is set in a row of a stage before masking; the message names column and stage.
            ValueError: ingest_time, stage or reason is null.
            KeyError: a column is not of ``QUARANTINE_SCHEMA``.
            OutputError: as above.
        """
        if not batch.num_rows:
            return
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        batch = conform(columns, QUARANTINE_SCHEMA, batch.num_rows)
        for name in ("ingest_time", "stage", "reason"):
            if batch.column(name).null_count:
                raise ValueError(f"{name} is null in {batch.column(name).null_count} rejected rows")
        self._refuse_clear(batch)
        date = batch.column("ingest_time").cast(pa.date32())
        self._writer.write(pa.RecordBatch.from_arrays([*batch.columns, date], schema=QUARANTINE_TABLE_SCHEMA))

    def close(self) -> list[WrittenFile]:
        """Completes all files and returns them by path; ``stats`` also has ``by_reason``: {stage: {reason: rows}}.

        The counts are read back from the files. A repeated call returns the same.
        """
        files = self._writer.close()
        return [
            replace(file, stats={**file.stats, "by_reason": reasons_in(self._root / file.path)})
            for file in files
        ]

    def discard(self) -> None:
        """Gives up what is not yet under a final name."""
        self._writer.discard()

    def _refuse_clear(self, batch: pa.RecordBatch) -> None:
        stages = batch.column("stage")
        clear = pc.invert(pc.is_in(plain(stages), value_set=self._masked))
        for name in UNMASKED:
            column = batch.column(name)
            if column.null_count == len(column):
                continue
            found = pc.and_(clear, column.is_valid())
            if mask_of(found).any():
                which = sorted(pc.unique(plain(stages).filter(found)).to_pylist())
                raise AssertionError(
                    f"column {name} is set in {pc.sum(found).as_py()} rows rejected by {', '.join(which)}, before masking; "
                    "it may hold PII in clear, so nothing is written. Build rejects with transforms.rejects.rejected, or "
                    "name the stage in masked_stages if it comes after MaskPii"
                )


def reasons_in(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Returns {stage: {reason: rows}} of one quarantine file, both sorted, counted from its rows."""
    with pq.ParquetFile(path, read_dictionary=["stage", "reason"]) as file:
        table = file.read(columns=["stage", "reason"], use_threads=False)
    counts: dict[str, dict[str, int]] = {}
    grouped = table.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all")])
    rows = sorted(
        zip(*(grouped.column(n).to_pylist() for n in ("stage", "reason", "count_all")), strict=True)
    )
    for stage, reason, number in rows:
        counts.setdefault(stage, {})[reason] = number
    return counts
