"""Small helpers over RecordBatches that every kernel shares."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import QUARANTINE_SCHEMA


def column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns the column, or nulls of the quarantine table's type for it where the batch has none."""
    i = batch.schema.get_field_index(name)
    if i >= 0:
        return batch.column(i)
    return pa.nulls(batch.num_rows, QUARANTINE_SCHEMA.field(name).type)


def plain(array: pa.Array) -> pa.Array:
    """Decodes a dictionary array; anything else is returned as it is."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def encoded(array: pa.Array) -> pa.DictionaryArray:
    """Dictionary-encodes with int32 codes and no null among the values; an array that is so already is returned as it is."""
    if not pa.types.is_dictionary(array.type):
        return array.dictionary_encode()
    if pa.types.is_int32(array.type.index_type) and not array.dictionary.null_count:
        return array
    return array.dictionary_decode().dictionary_encode()


def constant(value: object, rows: int, type_: pa.DataType) -> pa.Array:
    """Returns one value repeated; cheap for dictionary types."""
    if pa.types.is_dictionary(type_):
        if value is None:
            return pa.nulls(rows, type_)
        codes = pa.array(np.zeros(rows, np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array([value], type_.value_type))
    return pa.repeat(pa.scalar(value, type_), rows)


def as_type(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Converts between plain and dictionary strings, and casts what differs otherwise."""
    if array.type.equals(type_):
        return array
    if pa.types.is_dictionary(type_):
        if pa.types.is_null(array.type):
            return pa.nulls(len(array), type_)
        values = plain(array)
        return encoded(values if values.type.equals(type_.value_type) else values.cast(type_.value_type))
    return plain(array).cast(type_)


def conform(columns: Mapping[str, pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Builds a batch of exactly this schema; a missing column is null, a column not in the schema is refused."""
    unknown = set(columns) - set(schema.names)
    if unknown:
        raise KeyError(f"columns {sorted(unknown)} are not in the schema")
    arrays = [
        as_type(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def replace(batch: pa.RecordBatch, new: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Returns the batch with columns replaced, or appended at the end in the order given."""
    names = list(batch.schema.names)
    arrays = list(batch.columns)
    for name, array in new.items():
        if name in names:
            arrays[names.index(name)] = array
        else:
            names.append(name)
            arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def drop(batch: pa.RecordBatch, *names: str) -> pa.RecordBatch:
    """Returns the batch without these columns; one that it lacks is ignored."""
    keep = [n for n in batch.schema.names if n not in names]
    return batch.select(keep) if len(keep) < batch.num_columns else batch


def mask_of(array: pa.Array) -> np.ndarray:
    """Returns a boolean array as numpy, null as false."""
    return pc.fill_null(array, False).to_numpy(zero_copy_only=False)


def concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenates batches of one schema into one; dictionaries are unified."""
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches)
    try:
        table = table.unify_dictionaries()
    except pa.ArrowInvalid:  # A null among the values of a dictionary, which only foreign batches have.
        table = pa.Table.from_batches([_without_null_values(b) for b in batches]).unify_dictionaries()
    table = table.combine_chunks()
    if not table.num_rows:
        return batches[0].slice(0, 0)
    return table.to_batches()[0]


def _without_null_values(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [encoded(c) if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def on_dictionary(array: pa.Array, function, *, type_: pa.DataType | None = None) -> pa.Array:  # type: ignore[no-untyped-def]
    """Applies ``function`` (array of distinct values → array of equal length) once per distinct value.

    Null stays null. The result has the function's own type, or is dictionary-encoded if ``type_`` is a dictionary type.
    """
    codes = encoded(array)
    values = function(codes.dictionary)
    if type_ is not None and pa.types.is_dictionary(type_):
        values = encoded(values)
        return pa.DictionaryArray.from_arrays(values.indices.take(codes.indices), values.dictionary)
    return values.take(codes.indices)
