"""Vectorised 64-bit hashes of Arrow columns, for comparing rows and for spreading them over shards.

XXH3 (xxhash specification 0.2.0) once per distinct value or text, and the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)
over numbers. A hash depends on the value alone: never on the batch, the encoding (plain or dictionary) or the row's position.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from headrace.transforms.batches import as_type, encoded, plain

U64 = npt.NDArray[np.uint64]

_SEPARATOR = b"\xff"
"""No UTF-8 text contains this byte (RFC 3629), so texts joined by it can be told apart."""


def mix64(values: U64, seed: int) -> U64:
    """Maps 64 bits one-to-one to 64 well-mixed bits."""
    x = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def hash_columns(columns: Sequence[tuple[int, pa.Array, pa.DataType]], rows: int) -> U64:
    """Hashes rows over several columns, each given as (number below 64, array, its declared type).

    A column that is all null adds nothing, so a missing column equals one of nulls; null differs from every value, the empty
    string included. Arrays are converted to their declared type first.
    """
    total = np.zeros(rows, np.uint64)
    texts: list[pa.Array] = []
    shape = np.zeros(rows, np.uint64)
    for number, array, type_ in columns:
        if array.null_count == rows:
            continue
        if pa.types.is_string(type_):
            texts.append(as_type(array, type_).cast(pa.binary()))
            shape |= present(texts[-1]).astype(np.uint64) << np.uint64(number)
        else:
            total ^= hash_values(as_type(array, type_), number)
    if texts:
        # The leading constant is needed: pyarrow 25 leaves out a row whose values are all skipped.
        joined = pc.binary_join_element_wise(b"", *texts, _SEPARATOR, null_handling="skip")
        total ^= mix64(_hash_texts(joined.to_pylist(), 0) ^ mix64(shape, 1), 2) * (shape != 0)
    return total


def hash_values(array: pa.Array, seed: int) -> U64:
    """Hashes one column; null gives 0. Strings, dictionaries of strings, integers, times, decimals and booleans.

    Raises:
        TypeError: a column of another type.
    """
    type_ = array.type
    if pa.types.is_null(type_):
        return np.zeros(len(array), np.uint64)
    if pa.types.is_dictionary(type_):
        codes = encoded(array)
        table = np.append(hash_values(codes.dictionary, seed), np.uint64(0))
        return table[pc.fill_null(codes.indices, len(table) - 1).to_numpy(zero_copy_only=False)]
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        texts = [b"" if v is None else v for v in array.cast(pa.large_binary()).to_pylist()]
        return _hash_texts(texts, seed) * present(array)
    if pa.types.is_decimal128(type_):
        limbs = decimal_limbs(array)
        return mix64(mix64(limbs[:, 0], seed) ^ limbs[:, 1], seed + 1) * present(array)
    if pa.types.is_integer(type_) or pa.types.is_temporal(type_) or pa.types.is_boolean(type_):
        return mix64(int64_values(array).view(np.uint64), seed) * present(array)
    raise TypeError(f"a column of type {type_} can't be hashed; cast it to a string, an integer or a decimal")


def present(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Returns which values are not null; a dictionary's null entries count as null."""
    valid: npt.NDArray[np.bool_] = plain(array).is_valid().to_numpy(zero_copy_only=False)
    return valid


def int64_values(array: pa.Array) -> npt.NDArray[np.int64]:
    """Returns integers, booleans, dates or times as int64 in their own unit; null gives 0."""
    if pa.types.is_date32(array.type) or pa.types.is_time32(array.type):
        array = array.cast(pa.int32())
    numbers = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(numbers, dtype=np.int64)


def decimal_limbs(array: pa.Array) -> U64:
    """Returns the (low, high) 64 bits, two's complement, of a decimal128 array's unscaled values; null gives 0, 0."""
    limbs = np.frombuffer(array.buffers()[1], np.uint64).reshape(-1, 2)[
        array.offset : array.offset + len(array)
    ]
    return limbs * present(array)[:, None] if array.null_count else limbs


def _hash_texts(texts: Sequence[bytes], seed: int) -> U64:
    return np.fromiter((xxh3_64_intdigest(v, seed) for v in texts), np.uint64, len(texts))
