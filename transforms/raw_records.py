"""Raw records that can't be decoded at all."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.failures import Failure
from headrace.transforms.batches import column, mask_of, plain
from headrace.transforms.keys import Key
from headrace.transforms.rejects import rejected

FAULTS = {
    "line_too_long": "longer than the limit; raise max_record_bytes, or fix the producer (only its beginning is kept)",
    "truncated_input": "the file ends in the middle of its compressed stream; fetch it again",
    "csv_ragged_row": "another number of cells than the header has",
    "csv_unclosed_quote": "a quoted cell is not closed before the end of the file",
    "invalid_utf8": "bytes that are not UTF-8; convert the file",
    "not_json": "a value that JSON can't hold, such as NaN",
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


def origin_of(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """What is known of records that can't be read: where they stand and when they came."""
    return batch.select(["origin", "origin_position", "ingest_time"]).take(pa.array(rows))


def fault_rows(batch: pa.RecordBatch, key: Key) -> pa.RecordBatch:
    """Returns the rejects for records that the source marked with a fault."""
    codes = plain(column(batch, "fault"))
    failures = [
        [Failure(code, "", FAULTS.get(code, "the source could not read this record"))]
        for code in codes.to_pylist()
    ]
    return rejected(
        batch.select(["origin", "origin_position", "ingest_time"]),
        "decode",
        codes,
        failures=failures,
        documents=key.seal(column(batch, "raw").to_pylist()),
    )
