"""Raw records that can't be decoded at all."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.failures import Failure
from headrace.transforms.assemble import FROM_SOURCE
from headrace.transforms.batches import column, mask_of, plain
from headrace.transforms.keys import Key
from headrace.transforms.rejects import rejected

FAULTS = {
    "line_too_long": "longer than the limit; raise max_record_bytes, or fix the producer (only its beginning is kept)",
    "truncated_input": "the file ends in the middle of its compressed stream; fetch it again",
    "csv_ragged_row": "another number of cells than the header has",
    "csv_unclosed_quote": "a quoted cell is not closed before the end of the file",
    "invalid_utf8": "bytes that are not UTF-8; convert the file",
    "null_value": "a record without a value (a tombstone of a compacted topic); it holds no event",
    "no_timestamp": "the record has no timestamp, so its ingest time is unknown; let the broker set it (LogAppendTime)",
    "unserialisable": "a value that can't be written as JSON; give text, numbers, booleans, lists, dicts, dates or decimals",
    "not_json": "a value that JSON can't hold, such as NaN",
    "unreadable_file": "the file stayed unreadable (cut, corrupt, or of no known format); mend it, it is read then; only its "
    "beginning is kept",
    "foreign_format": "a web log in a stream of JSON or the other way round; read it by a stream with the right format=",
    "broken_block": "a block of the file that can't be decoded; fetch the file again",
}
"""Reason codes that sources give for records that they could not read."""


def invalid_utf8(raw: pa.Array) -> np.ndarray:
    """True for each record that is not UTF-8."""
    try:
        raw.cast(pa.string())
        return np.zeros(len(raw), bool)
    except pa.ArrowInvalid:
        unchecked = pc.cast(raw, options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
        invalid = mask_of(pc.invert(pc.string_is_ascii(unchecked)))
        invalid[invalid] = [first_invalid(d) is not None for d in raw.filter(pa.array(invalid)).to_pylist()]
        return invalid


def first_invalid(document: bytes) -> int | None:
    """Returns the position of the first byte that is not UTF-8."""
    try:
        document.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def without_faults(batch: pa.RecordBatch, key: Key) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
    """Returns the records that the source could read, and the rejects for those that it marked with a fault."""
    faulty = mask_of(pc.is_valid(column(batch, "fault")))
    if not faulty.any():
        return batch, []
    lost = batch.filter(pa.array(faulty))
    failures = [
        Failure(code, "", FAULTS.get(code, "the source could not read this record"))
        for code in plain(column(lost, "fault")).to_pylist()
    ]
    rejects = reject_records(lost, failures, column(lost, "raw").to_pylist(), key)
    return batch.filter(pa.array(~faulty)), [rejects]


def reject_records(
    batch: pa.RecordBatch, failures: Sequence[Failure], documents: Iterable[bytes | None], key: Key
) -> pa.RecordBatch:
    """Returns the rejects for all rows of ``batch``: one failure, whose code is the reason, and one raw record each."""
    return rejected(
        batch.select(list(FROM_SOURCE)),
        "decode",
        pa.array([failure["code"] for failure in failures], pa.string()),
        failures=[[failure] for failure in failures],
        documents=key.seal(documents),
    )
