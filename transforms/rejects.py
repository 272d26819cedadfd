"""Building rows for the quarantine."""

from collections.abc import Sequence

import orjson
import pyarrow as pa

from headrace.schemas.columns import JSON_COLUMNS, QUARANTINE_SCHEMA
from headrace.schemas.failures import Failure
from headrace.transforms.batches import as_type, column, concat, conform, constant

UNMASKED = ("user_id", "ip_address", "page_url", "referrer", "query", "city", *JSON_COLUMNS)
"""Columns that may hold PII before MaskPii; null in rows rejected before it (the sealed document has them)."""


def rejected(
    batch: pa.RecordBatch,
    stage: str,
    reason: str | pa.Array,
    *,
    message: str | pa.Array | None = None,
    failures: Sequence[Sequence[Failure]] | None = None,
    documents: pa.Array | None = None,
    masked: bool = False,
) -> pa.RecordBatch:
    """Returns ``batch`` (all of its rows are rejected) as rows of ``QUARANTINE_SCHEMA``.

    Args:
        reason: one code for all rows, or a string array with one for each.
        message: likewise.
        failures: all failures of each row; sets pointer, message (of the first) and errors.
        documents: sealed documents, binary; null where the masked columns say all.
        masked: true for stages after MaskPii: sensitive columns are kept.
    """
    rows = batch.num_rows
    columns = {
        name: column(batch, name)
        for name in QUARANTINE_SCHEMA.names
        if batch.schema.get_field_index(name) >= 0 and (masked or name not in UNMASKED)
    }
    code = QUARANTINE_SCHEMA.field("reason").type
    columns["stage"] = constant(stage, rows, code)
    columns["reason"] = constant(reason, rows, code) if isinstance(reason, str) else as_type(reason, code)
    if failures is not None:
        columns["pointer"] = pa.array([f[0]["pointer"] if f else None for f in failures], pa.string())
        columns["message"] = pa.array([f[0]["message"] if f else None for f in failures], pa.string())
        columns["errors"] = pa.array([orjson.dumps(f).decode() if f else None for f in failures], pa.string())
    elif message is not None:
        columns["message"] = constant(message, rows, pa.string()) if isinstance(message, str) else message
    if documents is not None:
        columns["document"] = documents
    if "attempt" not in columns:
        columns["attempt"] = constant(1, rows, pa.int32())
    return conform(columns, QUARANTINE_SCHEMA, rows)


def no_rejects() -> pa.RecordBatch:
    """Returns an empty batch of ``QUARANTINE_SCHEMA``."""
    return conform({}, QUARANTINE_SCHEMA, 0)


def all_rejects(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins rejects into one batch; empty if there are none."""
    return concat(batches) if batches else no_rejects()
