"""Putting the columns of several families together, in the order of the input."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import DECODED_SCHEMA, PENDING, RAW
from headrace.schemas.registry import Schema
from headrace.transforms.batches import as_type, conform, constant
from headrace.transforms.identity import content_ids

FROM_SOURCE = ("origin", "origin_position", "ingest_time")
"""Columns that an event has from where it was read."""


class Part(NamedTuple):
    """Rows of one schema."""

    rows: np.ndarray
    """Positions in the batch, ascending."""
    columns: dict[str, pa.Array]
    schema: Schema
    pending: bool

    @classmethod
    def proven(
        cls, rows: np.ndarray, columns: dict[str, pa.Array], good: np.ndarray, schema: Schema
    ) -> "Part | None":
        """Returns the rows that are proven valid; None if there are none."""
        if not good.any():
            return None
        if not good.all():
            keep = pa.array(good)
            rows, columns = rows[good], {name: array.filter(keep) for name, array in columns.items()}
        return cls(rows, columns, schema, pending=False)


def assemble(batch: pa.RecordBatch, parts: Sequence[Part]) -> pa.RecordBatch:
    """Returns ``DECODED_SCHEMA`` rows for all parts, ordered as in ``batch`` (``RAW_SCHEMA``)."""
    if not parts:
        return conform({}, DECODED_SCHEMA, 0)
    at = np.concatenate([part.rows for part in parts])
    whole = len(parts) == 1
    order = None if whole or (np.diff(at) > 0).all() else pa.array(np.argsort(at, kind="stable"))
    columns: dict[str, pa.Array] = {}
    names = {name for part in parts for name in part.columns}
    for name in names:
        columns[name] = _gather(parts, name, order)
    columns["schema"] = _gather(
        [
            part._replace(
                columns={
                    "schema": constant(part.schema.key, len(part.rows), DECODED_SCHEMA.field("schema").type)
                }
            )
            for part in parts
        ],
        "schema",
        order,
    )
    columns[PENDING] = _gather(
        [part._replace(columns={PENDING: pa.array(np.full(len(part.rows), part.pending))}) for part in parts],
        PENDING,
        order,
    )
    source = batch
    if len(at) != batch.num_rows:
        source = batch.take(pa.array(np.sort(at)))
    for name in FROM_SOURCE:
        columns[name] = source.column(source.schema.get_field_index(name))
    columns[RAW] = source.column(source.schema.get_field_index("raw"))
    return conform(with_derived(columns, len(at)), DECODED_SCHEMA, len(at))


def with_derived(columns: dict[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """Adds what follows from the others: the event's date, and an id where a proven row has none."""
    if "event_time" in columns:
        columns["event_date"] = columns["event_time"].cast(pa.date32())
        columns.update(with_ids(columns, rows))
    return columns


def with_ids(columns: dict[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """Returns ``event_id`` and ``id_generated``; rows without a time are not decided yet and get neither."""
    known = columns["event_time"].is_valid()
    ids = columns.get("event_id", pa.nulls(rows, pa.string()))
    missing = pc.and_(known, ids.is_null())
    generated = pc.if_else(known, missing, pa.scalar(None, pa.bool_()))
    wanted = int(pc.sum(missing).as_py() or 0)
    if wanted == rows:
        ids = content_ids(columns["origin"], columns[RAW])
    elif wanted:
        made = content_ids(columns["origin"].filter(missing), columns[RAW].filter(missing))
        ids = pc.replace_with_mask(ids, missing, made)
    return {"event_id": ids, "id_generated": generated}


def _gather(parts: Sequence[Part], name: str, order: pa.Array | None) -> pa.Array:
    type_ = DECODED_SCHEMA.field(name).type
    chunks = []
    for part in parts:
        array = part.columns.get(name)
        chunks.append(pa.nulls(len(part.rows), type_) if array is None else as_type(array, type_))
    if len(chunks) == 1:
        joined = chunks[0]
    else:
        joined = pa.chunked_array(chunks, type_)
        if pa.types.is_dictionary(type_):
            joined = joined.unify_dictionaries()
        joined = joined.combine_chunks()
    return joined if order is None else joined.take(order)
