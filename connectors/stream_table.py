"""One Delta table that a stream appends to every few seconds."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction

from headrace.connectors.atomic_file import sync
from headrace.connectors.commit_state import Mark
from headrace.connectors.delta_commit import add_action, ensure_table, plain_schema
from headrace.connectors.write_lake import STATISTICS, WrittenFile

FENCED = 1 << 62
"""Transaction version of a job that may not commit any more."""
SETTINGS = {"delta.logRetentionDuration": "interval 2 days"}
"""A commit a second leaves 86,400 log files a day; a checkpoint every 100 commits covers them."""


class StreamTable:
    """A table kept open: what others commit is read in steps, and its files are never listed for a commit.

    An append costs some 10 ms, and 5 ms more for each thousand files that make up the table, so a table that is
    appended to for long has to be compacted. A checkpoint is made with every hundredth commit.

    Args:
        root: the table's folder.
        partition_by: the partition columns.
        statistics: columns with statistics in the log.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        partition_by: Sequence[str] = (),
        statistics: Sequence[str] = STATISTICS,
    ) -> None:
        self.root = Path(root)
        self._partition_by = list(partition_by)
        self._statistics = statistics
        self._table: DeltaTable | None = None
        self._schema: pa.Schema | None = None

    def prepare(self, schema: pa.Schema) -> None:
        """Makes the table, or adds the columns that it lacks; nothing more once that is done for a schema.

        Raises:
            ConfigError: the table has another type for a column, or other partitions.
        """
        schema = plain_schema(schema)
        if self._schema is None or not schema.equals(self._schema):
            ensure_table(
                self.root, schema, self._partition_by, statistics=self._statistics, settings=SETTINGS
            )
            self._table, self._schema = None, schema

    def refresh(self) -> DeltaTable | None:
        """Returns the table as it is now; None if there is none. The same object each time."""
        if self._table is not None:
            if not self._is_latest(self._table.version()):
                self._table.update_incremental()
        elif DeltaTable.is_deltatable(os.fspath(self.root)):
            self._table = DeltaTable(os.fspath(self.root))
        return self._table

    @property
    def is_open(self) -> bool:
        """False before the first :meth:`refresh`, and after columns were added."""
        return self._table is not None

    @property
    def table(self) -> DeltaTable:
        """The table as it was at the last :meth:`refresh`, :meth:`mark` or :meth:`append`."""
        assert self._table is not None, "refresh() was not called, or found no table"
        return self._table

    @property
    def version(self) -> int:
        return int(self.table.version())

    def mark(self, app_id: str) -> Mark | None:
        """Returns up to which number the table has the job's entries, and the chain up to there; None: it has none."""
        table = self.refresh()
        seq = None if table is None else table.transaction_version(app_id)
        if table is None or seq is None:
            return None
        return Mark(seq, table.transaction_version(_chain_id(app_id)) or 0)

    def append(self, files: Sequence[WrittenFile], app_id: str, mark: Mark | None) -> None:
        """Adds files that are settled in one transaction that moves the job's mark; durable when it returns.

        Call :meth:`prepare` before. The table is taken as it was at the last :meth:`mark`.

        Args:
            mark: None leaves the job's mark as it is.

        Raises:
            deltalake.exceptions.CommitFailedError: the same job has committed to it since; nothing is changed.
        """
        table = self.table
        assert self._schema is not None, "prepare() was not called"
        before = table.version()
        transactions = (
            []
            if mark is None
            else [Transaction(app_id, mark.seq), Transaction(_chain_id(app_id), mark.chain)]
        )
        table.create_write_transaction(
            [add_action(self.root, file) for file in files],
            "append",
            Schema.from_arrow(self._schema),
            self._partition_by,
            commit_properties=CommitProperties(app_transactions=transactions),
        )
        table.update_incremental()
        log = self.root / "_delta_log"
        for version in range(before + 1, table.version() + 1):
            sync(log / f"{version:020d}.json")
        sync(log)

    def _is_latest(self, version: int) -> bool:
        """Looks whether anything was committed after ``version``; reading the log to find that out costs ten times more."""
        log = self.root / "_delta_log"
        if (log / f"{version + 1:020d}.json").exists():
            return False
        # Log files are removed only when they are old and a checkpoint covers them.
        try:
            checkpoint = json.loads((log / "_last_checkpoint").read_bytes())["version"]
        except FileNotFoundError:
            return True
        except (ValueError, KeyError):
            return False
        return bool(checkpoint <= version)


def _chain_id(app_id: str) -> str:
    return f"{app_id}/chain"
