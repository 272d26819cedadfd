"""Vectorised proofs over one column: each returns true only for values that surely satisfy the schema's keyword."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import MONEY

_PLAIN_PATTERN = re.compile(
    r"\^(?:[A-Za-z0-9_:@#%&=<>~,;/ -]|\\[.\-/]|\(\?:|[()|?*+]|\{\d+(?:,\d*)?\}|\[[A-Za-z0-9_ .+-]+\])*\$"
)
"""Patterns that mean the same in ECMA 262, Python and RE2 (anchored, no classes such as \\d, no lookaround)."""
_NUMBER = r"^-?(0|[1-9][0-9]{0,27})(\.[0-9]{1,9})?$"
_HYPHENS = (8, 13, 18, 23)


def pattern_is_plain(pattern: str) -> bool:
    """Tells whether the columnar matcher may be used for this pattern."""
    return _PLAIN_PATTERN.fullmatch(pattern) is not None


def prove_strings(values: pa.StringArray, schema: Mapping[str, Any]) -> np.ndarray:
    """Proves enum, const, pattern, minLength and maxLength for strings; null is taken as proven (types are checked before)."""
    proven = pa.repeat(pa.scalar(True), len(values))
    if "enum" in schema:
        allowed = pa.array([v for v in schema["enum"] if isinstance(v, str)], pa.string())
        proven = pc.and_(proven, pc.is_in(values, allowed))
    if "const" in schema:
        proven = pc.and_(proven, pc.equal(values, pa.scalar(schema["const"], pa.string())))
    if "pattern" in schema:
        proven = pc.and_(proven, pc.match_substring_regex(values, schema["pattern"]))
    if "minLength" in schema:
        proven = pc.and_(proven, pc.greater_equal(pc.utf8_length(values), schema["minLength"]))
    if "maxLength" in schema:
        proven = pc.and_(proven, pc.less_equal(pc.utf8_length(values), schema["maxLength"]))
    return pc.or_(pc.is_null(values), pc.fill_null(proven, False)).to_numpy(zero_copy_only=False)


def prove_uuids(values: pa.StringArray) -> np.ndarray:
    """Proves lower-case UUIDs of 36 characters; null is taken as proven."""
    rows = len(values)
    if not rows:
        return np.zeros(0, bool)
    if values.null_count == rows:
        return np.ones(rows, bool)
    fixed = values
    lengths = pc.fill_null(pc.equal(pc.binary_length(values), 36), False)
    if not pc.all(lengths).as_py():
        fixed = pc.if_else(lengths, values, "x" * 36)
    start = np.frombuffer(fixed.buffers()[1], np.int32, 1, fixed.offset * 4)[0]
    text = np.frombuffer(fixed.buffers()[2], np.uint8)[start : start + rows * 36].reshape(rows, 36)
    good = ((text - np.uint8(48)) < 10) | ((text - np.uint8(97)) < 6)
    good[:, _HYPHENS] = text[:, _HYPHENS] == 45
    proven: np.ndarray = np.logical_and.reduce(good, axis=1)
    if values.null_count:
        proven |= values.is_null().to_numpy(zero_copy_only=False)
    return proven


def prove_decimals(tokens: list[bytes | None], schema: Mapping[str, Any]) -> tuple[np.ndarray, pa.Array]:
    """Proves JSON number tokens, and strings of digits where the schema allows strings, to be money.

    Args:
        tokens: each value's own JSON text; None where absent or null.

    Returns:
        (proven, decimal128(38, 9)); null where not proven.
    """
    text = pa.array(tokens, pa.binary()).cast(pa.string())
    if text.null_count == len(text):
        return np.ones(len(text), bool), pa.nulls(len(text), MONEY)
    quoted = pc.fill_null(pc.starts_with(text, '"'), False)
    if "string" in schema["type"] and pc.any(quoted).as_py():
        inner = pc.utf8_slice_codeunits(text, 1, -1)
        if "pattern" in schema:
            inner = pc.if_else(pc.match_substring_regex(inner, schema["pattern"]), inner, "x")
        text = pc.if_else(quoted, inner, text)
    proven = pc.match_substring_regex(text, _NUMBER)
    value = pc.if_else(proven, text, pa.scalar(None, pa.string())).cast(MONEY)
    for keyword, compare in (("minimum", pc.greater_equal), ("maximum", pc.less_equal)):
        if keyword in schema:
            within = compare(value, pa.scalar(schema[keyword]).cast(MONEY))
            proven = pc.and_(proven, pc.or_(quoted, within))
    missing = pc.is_null(text)
    done = pc.or_(missing, pc.fill_null(proven, False)).to_numpy(zero_copy_only=False)
    return done, value
