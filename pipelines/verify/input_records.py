"""The records of a batch's input, kept so that they can be sent again in any order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.formats import LINE_FORMATS
from headrace.connectors.read_lines import BOM
from headrace.connectors.read_split import read_split
from headrace.connectors.splits import Plan
from headrace.schemas.errors import ConfigError

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class InputRecords:
    """Records by number, in the order of the input."""

    path: Path
    """Their bytes, one after another."""
    ends: I64
    """Where each one ends there."""
    origins: pa.ChunkedArray
    """Text: where each was read."""
    positions: I64
    unreadable: int
    """Records that could not be read from their files, of which there are no bytes to send: they are not among these."""

    def __len__(self) -> int:
        return len(self.ends)

    def lines(self, numbers: I64) -> Iterator[bytes]:
        """Yields records as lines; a reader gets the same bytes for each, also of one that ends with a carriage return."""
        content = (
            np.memmap(self.path, np.uint8, "r") if len(self.ends) and self.ends[-1] else np.empty(0, np.uint8)
        )
        starts = np.concatenate(([0], self.ends[:-1]))
        for start, end in zip(starts[numbers].tolist(), self.ends[numbers].tolist(), strict=True):
            record = content[start:end].tobytes()
            yield record + (b"\r\n" if record.endswith(b"\r") else b"\n")

    def file_start(self, number: int) -> bytes:
        """Returns what a file has to begin with whose first record this is: a byte order mark if the record itself has one."""
        return BOM if next(self.lines(np.array([number]))).startswith(BOM) else b""


def keep_records(
    plan: Plan,
    path: Path,
    *,
    now: datetime,
    mapping: Mapping[str, Any] | None,
    schema: Mapping[str, Any] | None,
    max_record_bytes: int,
) -> InputRecords:
    """Reads the input once more, as the batch did, and writes its records to ``path``.

    Args:
        mapping: applied to the records before they are kept; None if whoever gets them applies it.
        schema: by which CSV cells are cast.

    Raises:
        InputError: the input can't be read, or has changed.
    """
    lengths, origins, positions = [], [], []
    unreadable = 0
    with path.open("wb") as file:
        for split in plan.splits:
            for block in read_split(
                split, ingest_time=now, mapping=mapping, schema=schema, max_record_bytes=max_record_bytes
            ):
                rows = block.raw.filter(block.raw.column("fault").is_null())
                unreadable += block.raw.num_rows - rows.num_rows
                raw = rows.column("raw")
                file.write(b"".join(raw.to_pylist()))
                lengths.append(pc.binary_length(raw).to_numpy(zero_copy_only=False).astype(np.int64))
                origins.append(rows.column("origin"))
                positions.append(rows.column("origin_position").to_numpy())
    nothing = np.empty(0, np.int64)
    return InputRecords(
        path,
        np.cumsum(np.concatenate([nothing, *lengths])),
        pa.chunked_array(origins, pa.dictionary(pa.int32(), pa.string())),
        np.concatenate([nothing, *positions]),
        unreadable,
    )


def stream_format(plan: Plan) -> str:
    """Returns ``jsonl`` or ``weblog``, as which the records of an input can be sent.

    Raises:
        ConfigError: web logs and others; a stream is of one kind.
    """
    kinds = {file.format == "weblog" for file in plan.files}
    if len(kinds) > 1:
        weblog = next(file.origin for file in plan.files if file.format == "weblog")
        raise ConfigError(
            f"{weblog} is a web log, other files are not, and a stream is of one kind; prove each with a command of its own"
        )
    return "weblog" if True in kinds else "jsonl"


def only_lines(plan: Plan) -> bool:
    """True if records are lines of their files, not documents made of them."""
    return all(file.format in LINE_FORMATS for file in plan.files)
