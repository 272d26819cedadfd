"""Conditions on columns as plain data: which rows a measure counts, which rows are a step of a funnel."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type, mask_of, plain
from headrace.transforms.distinct import distinct

Value = str | bool | int | None
Conditions = tuple[tuple[str, tuple[Value, ...]], ...]
"""Column and the values it may have, for each condition; all must hold."""

ANY = "*"


def conditions(given: Mapping[str, object] | None, place: str) -> Conditions:
    """Reads conditions: column → value, or list of values of which the column must have one.

    A value is text, a boolean, a whole number or null. Text may have ``*`` for any characters, none included (``\\*`` is an
    asterisk), so ``"*"`` alone is any value but null. Only null matches null.

    Args:
        place: where it stands, for messages.

    Raises:
        ConfigError: no mapping of columns to such values.

    Example:
        >>> conditions({"event_type": ["page_view", "product_view"], "page_url": "https://shop.example/*"}, "where")
        (('event_type', ('page_view', 'product_view')), ('page_url', ('https://shop.example/*',)))
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{place} is {given!r}; write columns and their values, e.g. {{event_type: [page_view, click]}}"
        )
    return tuple((str(name), _values(value, f"{place}.{name}")) for name, value in given.items())


def _values(given: object, place: str) -> tuple[Value, ...]:
    values = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not values:
        raise ConfigError(f"{place} is empty, so no row would match; name a value, or '*' for any")
    for value in values:
        if not (value is None or isinstance(value, str | bool | int)):
            raise ConfigError(f"{place}: {value!r} is no text, boolean, whole number or null")
    return values


def columns_of(*all_conditions: Conditions) -> list[str]:
    """Returns the columns that conditions read, each once."""
    return list(dict.fromkeys(name for each in all_conditions for name, _ in each))


def matches(batch: pa.RecordBatch, wanted: Conditions) -> npt.NDArray[np.bool_]:
    """Returns which rows fulfil all conditions; work is per distinct value of text columns.

    Raises:
        ConfigError: a column that the batch lacks, or whose type has no such values.
    """
    found = np.ones(batch.num_rows, np.bool_)
    for name, values in wanted:
        index = batch.schema.get_field_index(name)
        if index < 0:
            raise ConfigError(
                f"a condition on {name!r}: the batches have no such column; they have {batch.schema.names}"
            )
        found &= _matches(batch.column(index), values, name)
    return found


def _matches(array: pa.Array, values: tuple[Value, ...], name: str) -> npt.NDArray[np.bool_]:
    type_ = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_null(type_):
        return np.full(len(array), None in values)
    if values == (ANY,):
        return mask_of(plain(array).is_valid())
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return _texts_match(array, values, name)
    others = [value for value in values if value is not None]
    _require_type(others, type_, name)
    wanted = pa.array(others, pa.bool_() if pa.types.is_boolean(type_) else pa.int64())
    array = plain(array)
    if not pa.types.is_boolean(type_):
        array = as_type(array, pa.int64())
    among = np.zeros(len(array), np.bool_)
    for value in wanted:
        among |= mask_of(pc.equal(array, value))
    return among | (~mask_of(array.is_valid()) if None in values else False)


def _require_type(values: Iterable[Value], type_: pa.DataType, name: str) -> None:
    if not (pa.types.is_boolean(type_) or pa.types.is_integer(type_)):
        raise ConfigError(
            f"a condition on {name!r}, which is {type_}: only text, booleans and whole numbers can be listed; "
            "'*' asks for any value"
        )
    for value in values:
        if isinstance(value, bool) != pa.types.is_boolean(type_) or isinstance(value, str):
            raise ConfigError(f"a condition on {name!r}, which is {type_}: it never has the value {value!r}")


def _texts_match(array: pa.Array, values: tuple[Value, ...], name: str) -> npt.NDArray[np.bool_]:
    wrong = [value for value in values if not (value is None or isinstance(value, str))]
    if wrong:
        raise ConfigError(f"a condition on {name!r}, which is text: it never has the value {wrong[0]!r}")
    codes = distinct(array)
    pattern = _pattern(tuple(value for value in values if isinstance(value, str)))
    texts = codes.dictionary.to_pylist()
    table = np.fromiter((pattern.fullmatch(text) is not None for text in texts), np.bool_, len(texts))
    table = np.append(table, None in values)
    at = pc.fill_null(codes.indices, len(texts)).to_numpy(zero_copy_only=False)
    found: npt.NDArray[np.bool_] = table[at]
    return found


@lru_cache(maxsize=256)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_glob(text) for text in texts) if texts else r"(?!)", re.DOTALL)


def _glob(text: str) -> str:
    parts = re.split(r"(\\\*|\*)", text)
    return "".join({"*": ".*", "\\*": r"\*"}.get(part, re.escape(part)) for part in parts)
