"""Proofs over typed columns: which values surely are what a schema's leaf wants, and what they become.

Each function may only prove what the JSON path would accept with the same result; whatever it doesn't know goes to that path.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columnar_checks import prove_strings, prove_uuids
from headrace.schemas.columns import MONEY, TIME
from headrace.schemas.rfc3339 import parse_column
from headrace.schemas.typed_decoder import Leaf, column_type
from headrace.transforms.batches import mask_of
from headrace.transforms.column_texts import decimal_texts, is_text, micros_of

_EXACT, _EXACT_SINGLE = 2**53, 2**24
_STRING_RULES = frozenset(("enum", "const", "pattern", "minLength", "maxLength"))
_NUMBER = r"^-?(0|[1-9][0-9]{0,27})(\.[0-9]{1,9})?$"


class Proven(NamedTuple):
    """A leaf's column."""

    values: pa.Array
    """Of the column's type, or plain text where the column is coded; whatever it likes where not good."""
    good: np.ndarray | None
    """bool; true where the value is null or proven. None: everywhere."""


def prove(leaf: Leaf, array: pa.Array) -> Proven | None:
    """Proves a leaf's values; None if nothing can be proven of a column of this type.

    A null is an absent member, so it is taken as proven here.
    """
    return _PROOFS[leaf.kind](leaf, array)


def _text(array: pa.Array) -> pa.Array | None:
    """The column as plain or dictionary-encoded text; None if it is none."""
    if (
        pa.types.is_dictionary(array.type)
        and is_text(array.type.value_type)
        and not array.dictionary.null_count
    ):
        return array.cast(pa.dictionary(pa.int32(), pa.string()))
    if is_text(array.type):
        return array.cast(pa.string())
    return None


def _plain_text(array: pa.Array) -> pa.Array | None:
    text = _text(array)
    return text.dictionary_decode() if text is not None and pa.types.is_dictionary(text.type) else text


def _string(leaf: Leaf, array: pa.Array) -> Proven | None:
    text = _text(array)
    if text is None:
        return None
    coded = pa.types.is_dictionary(column_type(leaf.field.column))
    if coded and not pa.types.is_dictionary(text.type):
        text = text.dictionary_encode()
    rules = leaf.field.schema
    if not rules.keys() & _STRING_RULES:
        return Proven(text, None)
    if not pa.types.is_dictionary(text.type):
        return Proven(text, prove_strings(text, rules))
    good = prove_strings(text.dictionary, rules)
    if good.all():
        return Proven(text, None)
    codes = text.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return Proven(text, good[codes] | mask_of(text.is_null()))


def _uuid(leaf: Leaf, array: pa.Array) -> Proven | None:
    text = _plain_text(array)
    return None if text is None else Proven(text, prove_uuids(text))


def _time(leaf: Leaf, array: pa.Array) -> Proven | None:
    missing = mask_of(array.is_null())
    if pa.types.is_timestamp(array.type):
        micros, good = micros_of(array)
    else:
        text = _plain_text(array)
        if text is None:
            return None
        good, micros = parse_column(text)
        good |= missing
    values = pa.array(micros, pa.int64(), mask=missing if missing.any() else None).cast(TIME)
    return Proven(values, good)


def _integer(leaf: Leaf, array: pa.Array) -> Proven | None:
    column = column_type(leaf.field.column)
    if pa.types.is_integer(array.type):
        if pa.types.is_uint64(array.type):
            fits = pc.less_equal(array, pa.scalar(2**63 - 1, pa.uint64())).fill_null(True)
            numbers = pc.if_else(fits, array, pa.scalar(0, pa.uint64())).cast(pa.int64())
            good = mask_of(fits)
        else:
            numbers, good = array.cast(pa.int64()), np.ones(len(array), bool)
    elif pa.types.is_float64(array.type) or pa.types.is_float32(array.type):
        floats = array.cast(pa.float64())
        most = float(_EXACT if pa.types.is_float64(array.type) else _EXACT_SINGLE)
        whole = pc.and_(pc.equal(pc.floor(floats), floats), pc.less_equal(pc.abs(floats), most))
        whole = whole.fill_null(True)
        numbers = pc.if_else(whole, floats, 0.0).cast(pa.int64())
        good = mask_of(whole)
    else:
        return None
    limit = 2 ** ((column.bit_width if pa.types.is_integer(column) else 64) - 1)
    bounds = {"minimum": -limit, "maximum": limit - 1}
    for keyword, compare in (("minimum", pc.greater_equal), ("maximum", pc.less_equal)):
        for bound in (bounds[keyword], leaf.field.schema.get(keyword)):
            if bound is not None:
                good &= mask_of(compare(numbers, bound).fill_null(True))
    return Proven(numbers if good.all() else pc.if_else(pa.array(good), numbers, None), good)


def _money(leaf: Leaf, array: pa.Array) -> Proven | None:
    """Numbers are proven by their shortest decimal text, decimals and strings by the text that a document quotes."""
    rules = leaf.field.schema
    type_ = array.type
    if pa.types.is_integer(type_) or pa.types.is_float64(type_) or pa.types.is_float32(type_):
        text, quoted = array.cast(pa.string()), False
    elif "string" not in rules["type"]:
        return None
    elif pa.types.is_decimal(type_) and type_.precision <= 18 and 0 <= type_.scale <= 9:
        text, quoted = decimal_texts(array), True
    else:
        plain = _plain_text(array)
        if plain is None:
            return None
        text, quoted = plain, True
    good = pc.match_substring_regex(text, _NUMBER)
    if quoted and "pattern" in rules:
        good = pc.and_(good, pc.match_substring_regex(text, rules["pattern"]))
    value = pc.if_else(good, text, pa.scalar(None, pa.string())).cast(MONEY)
    if not quoted:
        for keyword, compare in (("minimum", pc.greater_equal), ("maximum", pc.less_equal)):
            if keyword in rules:
                good = pc.and_(good, compare(value, pa.scalar(rules[keyword]).cast(MONEY)))
    return Proven(value, mask_of(pc.or_(array.is_null(), good.fill_null(False))))


_PROOFS: dict[str, Callable[[Leaf, pa.Array], Proven | None]] = {
    "string": _string,
    "uuid": _uuid,
    "time": _time,
    "integer": _integer,
    "money": _money,
}
