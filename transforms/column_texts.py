"""JSON texts of Arrow columns, a column at a time: the same bytes that the row-wise writer makes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.transforms.batches import mask_of, plain

_ESCAPED = r'["\\\x00-\x1f]'
"""Characters that JSON text can't hold as they are; orjson escapes no others."""
_YEAR_1000, _YEAR_10000 = -30_610_224_000_000_000, 253_402_300_800_000_000
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SAMPLE = 256
_MOST_DIGITS = 18
"""Decimals of more digits than int64 surely holds are written cell by cell."""


class Texts(NamedTuple):
    """The JSON text of each value."""

    values: pa.Array
    """string, or dictionary of strings; null where the value is null, or its text is not known."""
    known: np.ndarray | None
    """bool; true where the value is null or its text is known. None: everywhere."""
    bare: bool = False
    """Whether the texts lack the quotes around them."""

    def json(self) -> pa.Array:
        """Returns the whole texts as a plain string array."""
        return plain(_wrapped('"', self.values, '"') if self.bare else self.values)


Cells = Callable[[pa.Array, bool], Texts]
"""(array, canonical) → the texts of values of any type, made one by one."""


def json_texts(array: pa.Array, canonical: bool, cells: Cells) -> Texts:
    """Returns the JSON text of each value, as a document holds it.

    Decimals and times are quoted as :func:`headrace.connectors.json_rows.jsonable` writes them. Strings must be valid UTF-8.

    Args:
        canonical: sort the keys of objects; else they stand in the order of the struct's fields.
        cells: for types that have no columnar writer here.
    """
    type_ = array.type
    if pa.types.is_null(type_):
        return Texts(pa.nulls(len(array), pa.string()), None)
    if pa.types.is_dictionary(type_) and is_text(type_.value_type) and not array.dictionary.null_count:
        escaped = _escaped(array.dictionary.cast(pa.string()))
        return Texts(pa.DictionaryArray.from_arrays(array.indices, escaped), None, bare=True)
    if is_text(type_):
        return Texts(_escaped(array.cast(pa.string())), None, bare=True)
    if pa.types.is_boolean(type_):
        return Texts(pc.if_else(array, "true", "false"), None)
    if pa.types.is_integer(type_):
        return Texts(array.cast(pa.string()), None)
    if pa.types.is_timestamp(type_):
        return time_texts(array)
    if pa.types.is_decimal(type_) and type_.precision <= _MOST_DIGITS and 0 <= type_.scale <= 9:
        return Texts(decimal_texts(array), None, bare=True)
    if pa.types.is_struct(type_) and has_plain_names(type_):
        members = [json_texts(child, canonical, cells) for child in array.flatten()]
        named = list(zip([field.name for field in type_], members, strict=True))
        return object_texts(named, array.is_valid(), canonical)
    return cells(array, canonical)


def object_texts(members: Sequence[tuple[str, Texts]], present: pa.Array, canonical: bool) -> Texts:
    """Returns JSON objects of their members' texts; null members are left out.

    Args:
        present: boolean; where false or null the text is null.
    """
    ordered = sorted(members, key=lambda member: member[0]) if canonical else members
    pieces: list[Any] = ["{"]
    for name, texts in ordered:
        quote = '"' if texts.bare else ""
        before = "," + orjson.dumps(name).decode() + ":" + quote
        if texts.values.null_count or pa.types.is_dictionary(texts.values.type):
            pieces.append(plain(_wrapped(before, texts.values, quote)).fill_null(""))
        else:
            pieces += [before, texts.values, quote] if quote else [before, texts.values]
    nothing = pa.scalar(None, pa.string())
    whole: pa.Array | pa.Scalar = pa.scalar("{}")
    if members:
        inner = pc.binary_join_element_wise(*pieces, "")
        whole = _wrapped("", pc.binary_replace_slice(inner, 1, 2, ""), "}")
    values = (
        whole if members and not mask_of(pc.invert(present)).any() else pc.if_else(present, whole, nothing)
    )
    known: np.ndarray | None = None
    for _, texts in members:
        if texts.known is not None:
            known = texts.known if known is None else known & texts.known
    return Texts(values, None if known is None else known | ~mask_of(present))


def time_texts(array: pa.Array) -> Texts:
    """Returns quoted RFC 3339 texts in UTC of timestamps of the years 1000 to 9999; others are not known."""
    micros, known = micros_of(array)
    fraction = micros % 1_000_000
    seconds = pa.array(micros // 1_000_000).cast(pa.timestamp("s")).cast(pa.string())
    day, clock = pc.utf8_slice_codeunits(seconds, 0, 10), pc.utf8_slice_codeunits(seconds, 11, 19)
    if fraction.any():
        digits = pc.utf8_slice_codeunits(pa.array(fraction + 1_000_000).cast(pa.string()), 1, 7)
        end = pc.if_else(pa.array(fraction != 0), _wrapped(".", digits, 'Z"'), 'Z"')
    else:
        end = pa.scalar('Z"')
    texts = pc.binary_join_element_wise('"', day, "T", clock, end, "")
    usable = known & array.is_valid().to_numpy(zero_copy_only=False)
    values = texts if usable.all() else pc.if_else(pa.array(usable), texts, pa.scalar(None, pa.string()))
    return Texts(values, None if known.all() else known)


def micros_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns (microseconds since the epoch, true where the time is null or surely in the years 1000 to 9999).

    Digits below a microsecond are cut towards zero. Microseconds are 0 where the time is null or not known.
    """
    per_second = _PER_SECOND[array.type.unit]
    ticks = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if per_second <= 10**6:
        factor = 10**6 // per_second
        known = (ticks >= _YEAR_1000 // factor) & (ticks < _YEAR_10000 // factor)
        micros = np.where(known, ticks, 0) * factor
    else:
        micros = np.where(ticks < 0, -(-ticks // 1000), ticks // 1000)
        known = (micros >= _YEAR_1000) & (micros < _YEAR_10000)
    return micros, known


def decimal_texts(array: pa.Array) -> pa.Array:
    """Returns decimals of at most 18 digits and 0 to 9 decimals as text without exponent; null stays null."""
    scale = array.type.scale
    whole = array.cast(pa.decimal128(38, scale))
    low = np.frombuffer(whole.buffers()[1], np.int64).reshape(-1, 2)[
        whole.offset : whole.offset + len(whole), 0
    ]
    valid = array.is_valid()
    unscaled = low if not array.null_count else np.where(mask_of(valid), low, 0)
    size = np.abs(unscaled)
    text = pa.array(size // 10**scale).cast(pa.string())
    if scale:
        digits = pc.utf8_slice_codeunits(pa.array(size % 10**scale + 10**scale).cast(pa.string()), 1)
        text = pc.binary_join_element_wise(text, digits, ".")
    negative = unscaled < 0
    if negative.any():
        text = pc.if_else(pa.array(negative), _wrapped("-", text, ""), text)
    return pc.if_else(valid, text, pa.scalar(None, pa.string())) if array.null_count else text


def coded(array: pa.Array) -> pa.Array:
    """Returns a column of texts dictionary-encoded if few of them differ: then each is looked at once. Others as they are."""
    if not is_text(array.type) or len(array) < _SAMPLE:
        return array
    step = len(array) // _SAMPLE
    sample = array.take(pa.array(np.arange(0, step * _SAMPLE, step)))
    return array.dictionary_encode() if pc.count_distinct(sample).as_py() < _SAMPLE // 2 else array


def is_text(type_: pa.DataType) -> bool:
    """Tells whether values of the type are texts."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def has_plain_names(type_: pa.StructType) -> bool:
    """Tells whether no two fields of the struct have one name: such a row can't be made into a document."""
    names = [field.name for field in type_]
    return len(set(names)) == len(names)


def _escaped(texts: pa.Array) -> pa.Array:
    odd = mask_of(pc.match_substring_regex(texts, _ESCAPED))
    if not odd.any():
        return texts
    escaped = [orjson.dumps(text).decode()[1:-1] for text in texts.filter(pa.array(odd)).to_pylist()]
    return pc.replace_with_mask(texts, pa.array(odd), pa.array(escaped, pa.string()))


def _wrapped(before: str, texts: pa.Array, after: str) -> pa.Array:
    if pa.types.is_dictionary(texts.type):
        return pa.DictionaryArray.from_arrays(texts.indices, _wrapped(before, texts.dictionary, after))
    return pc.binary_join_element_wise(before, texts, after, "")
