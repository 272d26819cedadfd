"""Bringing a column of two tables to one type, so that only values differ."""

import re
from typing import NamedTuple

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_WIDE = ("UBIGINT", "HUGEINT")
_REAL = ("FLOAT", "DOUBLE")
_TEXT = ("VARCHAR", "UUID", "JSON")
_MOST_DIGITS = 38
_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")


class Common(NamedTuple):
    """The type that both sides are compared in."""

    sql: str
    """DuckDB's name of it."""
    family: str
    """``whole``, ``decimal``, ``real``, ``time``, ``text``, ``bytes`` or ``other``."""
    scale: int = 0
    """Digits after the point of a decimal."""

    @property
    def numeric(self) -> bool:
        return self.family in ("whole", "decimal", "real")

    def cast(self, column: str, type_: str) -> str:
        """Returns SQL for a column of ``type_`` in this type; a time with a zone becomes that time in UTC."""
        if self.family == "time" and type_ != "DATE":
            wide = self.sql == "TIMESTAMP_NS"
            return f"make_timestamp_ns(epoch_ns({column}))" if wide else f"make_timestamp(epoch_us({column}))"
        return column if type_ == self.sql else f"CAST({column} AS {self.sql})"


def common_type(a: str, b: str) -> Common | None:
    """Returns the type in which columns of two DuckDB types are compared; None if they hold different things.

    Whole numbers of any width are equal if their values are, and so are decimals of any scale, text, dictionaries and UUIDs,
    times of any unit. Decimals are compared with whole numbers exactly, binary fractions with anything as DOUBLE. A time
    without zone counts as UTC, a date as its midnight if the other side has times. A column that is null throughout takes the
    other's type.
    """
    if '"NULL"' in (a, b):
        other = b if a == '"NULL"' else a
        return Common("INTEGER", "whole") if other == '"NULL"' else common_type(other, other)
    families = {_family(a), _family(b)}
    if families <= {"whole"}:
        return Common("HUGEINT" if {a, b} & set(_WIDE) else "BIGINT", "whole")
    if families <= {"whole", "decimal"}:
        (whole_a, scale_a), (whole_b, scale_b) = _digits(a), _digits(b)
        scale = max(scale_a, scale_b)
        digits = min(_MOST_DIGITS, max(whole_a, whole_b) + scale)
        return Common(f"DECIMAL({digits},{scale})", "decimal", scale)
    if families <= {"whole", "decimal", "real"}:
        return Common("DOUBLE", "real")
    if families == {"text"}:
        return Common("VARCHAR", "text")
    if families <= {"time", "date"} and "time" in families:
        return Common("TIMESTAMP_NS" if a.endswith("_NS") or b.endswith("_NS") else "TIMESTAMP", "time")
    if a == b:
        return Common(a, "bytes" if a == "BLOB" else "other")
    if {a, b} <= {"TIME", "TIME_NS"}:
        return Common("TIME_NS", "other")
    return None


def _family(type_: str) -> str:
    if type_ in _WHOLE or type_ in _WIDE:
        return "whole"
    if type_.startswith("DECIMAL("):
        return "decimal"
    if type_ in _REAL:
        return "real"
    if type_ in _TEXT or type_.startswith("ENUM("):
        return "text"
    if type_ == "DATE":
        return "date"
    return "time" if type_.startswith("TIMESTAMP") else type_


def _digits(type_: str) -> tuple[int, int]:
    """Returns digits before and after the point."""
    found = _DECIMAL.fullmatch(type_)
    if found:
        return int(found[1]) - int(found[2]), int(found[2])
    return (_MOST_DIGITS if type_ == "HUGEINT" else 20 if type_ == "UBIGINT" else 19), 0
