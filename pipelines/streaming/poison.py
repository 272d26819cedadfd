"""Events on which a stage fails: set apart one by one, so that they never stop the others."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from headrace.schemas.columns import RAW
from headrace.schemas.errors import HeadraceError
from headrace.transforms.base import Kernel, Outcome
from headrace.transforms.batches import concat
from headrace.transforms.keys import Key
from headrace.transforms.rejects import rejected

POISON = "poison"
"""Reason code."""
MOST = 64
"""If more rows of one batch fail, the stage is at fault and not the events."""

_log = logging.getLogger(__name__)


def run_kernels(
    kernels: Sequence[Kernel], batch: pa.RecordBatch, key: Key
) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
    """Runs the kernels one after the other; returns what is left and everything rejected.

    A row on which a kernel raises is rejected: that kernel's stage, reason ``poison``, with its sealed document (before masking)
    or its masked columns. It is found by halving the batch, as a kernel treats every row for itself.

    Raises:
        Exception: what the kernel raised, if it is about the set-up (HeadraceError, OSError, MemoryError) or met more than
            ``MOST`` rows of the batch: the bundle fails and is tried again.
    """
    rejects = []
    for kernel in kernels:
        outcomes = _tried(kernel, batch, key, [MOST])
        accepted = [o.accepted for o in outcomes if o.accepted.num_rows] or [outcomes[0].accepted]
        batch = concat(accepted)
        rejects += [o.rejected for o in outcomes if o.rejected.num_rows]
        if not batch.num_rows:
            break
    return batch, rejects


def quarantine_whole(batch: pa.RecordBatch, key: Key, attempts: int) -> pa.RecordBatch:
    """Returns raw records as rejected unseen, because their processing ended the worker each time."""
    _log.error(
        "a poll of %d records ended the worker %d times; it is quarantined whole (stage decode, reason %s)",
        batch.num_rows,
        attempts,
        POISON,
    )
    return rejected(
        batch,
        "decode",
        POISON,
        message=f"processing the records of this poll ended the worker {attempts} times, so none of them was tried again",
        documents=key.seal(batch.column("raw").to_pylist()),
    )


def _tried(kernel: Kernel, batch: pa.RecordBatch, key: Key, left: list[int]) -> list[Outcome]:
    try:
        return [kernel(batch)]
    except (HeadraceError, OSError, MemoryError):
        raise
    except Exception as error:
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            return _tried(kernel, batch.slice(0, half), key, left) + _tried(
                kernel, batch.slice(half), key, left
            )
        left[0] -= 1
        if left[0] < 0 or not batch.num_rows:
            raise
        _log.error(
            "stage %s failed on an event with %s; it is quarantined", kernel.name, type(error).__name__
        )
        return [Outcome(batch.slice(0, 0), _reject(kernel, batch, key, error))]


def _reject(kernel: Kernel, batch: pa.RecordBatch, key: Key, error: Exception) -> pa.RecordBatch:
    names = batch.schema.names
    raw = RAW if RAW in names else "raw" if "raw" in names else None
    return rejected(
        batch,
        kernel.name,
        POISON,
        message=f"the stage failed on this event with {type(error).__name__}; report it as a bug",
        documents=None if raw is None else key.seal(batch.column(raw).to_pylist()),
        masked=raw is None,
    )


class Attempts:
    """Remembers across crashes how often the processing of one poll was begun and not ended.

    A runner restores its state after a crash, so the count lies in a file beside the lake.

    Args:
        path: of one reader.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, poll: int) -> int:
        """Notes that a poll is being processed; returns how often it was begun before without an end."""
        before = 0
        try:
            found = json.loads(self._path.read_bytes())
            before = found["attempts"] if found["poll"] == poll else 0
        except (FileNotFoundError, ValueError, KeyError):
            pass  # Nothing noted, or half a note from a power cut.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps({"poll": poll, "attempts": before + 1}))
        os.replace(aside, self._path)
        return before

    def end(self) -> None:
        """Notes that the poll came through."""
        self._path.unlink(missing_ok=True)
