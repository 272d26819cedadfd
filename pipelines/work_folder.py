"""The folder in which a batch run keeps what is not committed yet: stage files, receipts, progress."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.connectors.atomic_file import AtomicFile, naming, replace_file, sync
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.errors import UntrustedRunError

PROGRESS_EVERY_SECONDS = 0.5
COMPLETE = "complete"


@dataclass
class Receipt:
    """What became of one split: written when all of its files are complete, read by the launcher before it commits."""

    split: int
    rows_in: int = 0
    """Records that the reader counted."""
    events: list[WrittenFile] = field(default_factory=list)
    quarantine: list[WrittenFile] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class WorkFolder:
    """Paths and small files below ``OUT/_work``; every write is atomic and the same when repeated."""

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.root = Path(output) / "_work"

    @property
    def metrics(self) -> Path:
        """Where the metrics wait for the commit."""
        return self.root / "metrics"

    def stage(self, split: int) -> str:
        return os.fspath(self.root / "stage" / f"{split:06d}.arrow")

    def create(self) -> None:
        """Makes the folder anew: what a killed run left is of no use to the next one."""
        self.remove()
        for name in ("stage", "receipts", "progress"):
            (self.root / name).mkdir(parents=True)

    @property
    def complete(self) -> bool:
        """True once everything that the commit needs is on disk, checked: a rerun commits it and processes nothing again."""
        return (self.root / COMPLETE).exists()

    def mark_complete(self, files: Iterable[Path]) -> None:
        """Waits until the files and the metrics are on disk, then says so; a table may name them from now on.

        Raises:
            OutputError: the disk reports a failure.
        """
        for path in [*files, *sorted(self.metrics.rglob("*"))]:
            sync(path)
        replace_file(self.root / COMPLETE, b"")

    def remove(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)

    def write_receipt(self, receipt: Receipt) -> None:
        replace_file(
            self.root / "receipts" / f"{receipt.split:06d}.json", json.dumps(asdict(receipt)).encode()
        )

    def receipts(self, splits: int) -> list[Receipt]:
        """Returns the receipts of all splits.

        Raises:
            UntrustedRunError: one is missing: the runner reported success without having done the work.
        """
        found = []
        for split in range(splits):
            path = self.root / "receipts" / f"{split:06d}.json"
            if not path.exists():
                raise UntrustedRunError(
                    f"the runner finished, but split {split} of {splits} left no receipt in {path.parent}; is the output "
                    "folder shared with all workers? Nothing was committed; run the same command again"
                )
            found.append(receipt_from(json.loads(path.read_bytes())))
        return found

    def progress(self) -> Counter[str]:
        """Returns the sum of what all splits have reported so far."""
        total: Counter[str] = Counter()
        for path in (self.root / "progress").glob("*.json"):
            total.update(json.loads(path.read_bytes()))
        return total


class ProgressFile:
    """What one split has done; written at most twice a second, for the launcher to add up."""

    def __init__(self, work: WorkFolder, split: int, *, kind: str = "read") -> None:
        self._path = work.root / "progress" / f"{split:06d}-{kind}.json"
        self._last = -PROGRESS_EVERY_SECONDS
        self.counts: Counter[str] = Counter()

    def update(self, *, done: bool = False, **more: int) -> None:
        self.counts.update(more)
        now = time.monotonic()
        if done or now - self._last >= PROGRESS_EVERY_SECONDS:
            self._last = now
            file = AtomicFile(self._path)  # Whole at any time, but not worth a wait for the disk.
            with naming(self._path):
                file.temporary.write_bytes(json.dumps(self.counts).encode())
            file.commit()


def receipt_from(fields: dict[str, Any]) -> Receipt:
    """Builds a receipt from its JSON."""
    for table in ("events", "quarantine"):
        fields[table] = [WrittenFile(**file) for file in fields[table]]
    return Receipt(**fields)
