"""What a stage writes in one bundle: rows to files of the lake and the quarantine, and to the sinks beside them."""

from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from headrace.connectors.stream_entries import EVENTS, QUARANTINE, FilesEntry
from headrace.connectors.stream_sinks import Outlet, reject_rows
from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.definition import MASKED_STAGES
from headrace.pipelines.streaming.stream_task import StreamTask


class BundleOutput:
    """Files are opened with their first row, under names that no other bundle has; they count from their commit on.

    The sinks' connections are kept from bundle to bundle. Used by one thread.
    """

    def __init__(self, task: StreamTask) -> None:
        self._task = task
        self._sinks, self._quarantine_sinks = Outlet(task.sinks), Outlet(task.quarantine_sinks)
        self.begin()

    def begin(self) -> None:
        """Begins a bundle; files of one that failed are left to ``remove_orphans``."""
        self._events: PartitionedWriter | None = None
        self._quarantine: QuarantineWriter | None = None

    def accept(self, rows: pa.RecordBatch) -> None:
        """Takes rows for the lake."""
        if not rows.num_rows:
            return
        if self._events is None:
            self._events = PartitionedWriter(
                Path(self._task.output) / EVENTS,
                partition="event_date",
                name=self._name(),
                compression=self._task.compression,
            )
        self._events.write(rows)
        self._sinks.write(rows)

    def reject(self, rows: pa.RecordBatch) -> None:
        """Takes rows of ``QUARANTINE_SCHEMA``."""
        if not rows.num_rows:
            return
        if self._quarantine is None:
            self._quarantine = QuarantineWriter(
                Path(self._task.output) / QUARANTINE,
                self._name(),
                masked_stages=MASKED_STAGES,
                compression=self._task.compression,
            )
        self._quarantine.write(rows)
        if self._task.quarantine_sinks:
            self._quarantine_sinks.write(reject_rows(rows))

    def finish(self) -> list[FilesEntry]:
        """Ends the bundle: returns its files once the sinks have its rows."""
        self._sinks.flush()
        self._quarantine_sinks.flush()
        files = []
        if self._events is not None:
            files.append(FilesEntry(EVENTS, tuple(self._events.close())))
        if self._quarantine is not None:
            files.append(FilesEntry(QUARANTINE, tuple(self._quarantine.close())))
        self.begin()
        return files

    def close(self) -> None:
        """Closes the sinks' connections."""
        self._sinks.close()
        self._quarantine_sinks.close()

    def _name(self) -> str:
        return f"{self._task.job}-{uuid4().hex}"
