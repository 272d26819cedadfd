"""RFC 3339 date-times to microseconds since the epoch: a column at a time, and one by one."""

import calendar
import re

import numpy as np
import pyarrow as pa

_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_SHAPES = {20: (0, False), 24: (3, False), 27: (6, False), 25: (0, True), 29: (3, True), 32: (6, True)}
"""Text length → (digits of the fraction, has a numeric offset): what the columnar parser takes."""
_TEXT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_column(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Parses the common shapes of RFC 3339 (``2026-01-05T10:00:00[.fff[fff]](Z|±hh:mm)``).

    Returns:
        (proven, microseconds): ``proven`` is false for null and for whatever is not surely a valid date-time (other fractions,
        leap seconds, lower-case letters): the row-wise parser decides those. Microseconds are UTC, 0 where not proven.
    """
    rows = len(texts)
    proven, micros = np.zeros(rows, bool), np.zeros(rows, np.int64)
    if not rows:
        return proven, micros
    offsets = np.frombuffer(texts.buffers()[1], np.int32, rows + 1, texts.offset * 4)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    lengths = np.diff(offsets)
    for length in np.unique(lengths).tolist():
        if length not in _SHAPES:
            continue
        at = np.flatnonzero(lengths == length)
        if len(at) == rows:
            text = data[offsets[0] : offsets[0] + rows * length].reshape(rows, length)
        else:
            text = data[offsets[:-1][at][:, None] + np.arange(length)]
        good, value = _parse_matrix(text, *_SHAPES[length])
        proven[at], micros[at] = good, np.where(good, value, 0)
    return proven, micros


def parse_one(text: str) -> int | None:
    """Parses one valid RFC 3339 date-time to UTC microseconds; digits past the sixth are cut, a leap second is the next one.

    Returns:
        None if it is not one, or lies outside of the years 1 to 9999.
    """
    match = _TEXT.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
        return None
    shift = 0
    if match[8]:
        shift = (int(match[9]) * 60 + int(match[10])) * (60 if match[8] == "+" else -60)
    seconds = calendar.timegm((year, month, day, hour, minute, second)) - shift
    if not -62135596800 <= seconds < 253402300800:
        return None
    return seconds * 1_000_000 + int((match[7] or "0")[:6].ljust(6, "0"))


def days_from_civil(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Days since 1970-01-01 in the proleptic Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms")."""
    y = year - (month <= 2)
    era = y // 400
    year_of_era = y - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146097 + day_of_era - 719468


def valid_dates(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """True where year (1 to 9999), month and day make a date of the Gregorian calendar."""
    ok = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    safe = np.where(ok, month, 1)
    return ok & (day <= _DAYS[safe] + (leap & (safe == 2)))


def _parse_matrix(text: np.ndarray, fraction: int, offset: bool) -> tuple[np.ndarray, np.ndarray]:
    end = 20 + fraction if fraction else 19
    places = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, *range(20, end)]
    marks = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"} | ({19: "."} if fraction else {})
    if offset:
        places += [end + 1, end + 2, end + 4, end + 5]
        marks[end + 3] = ":"
    else:
        marks[end] = "Z"
    digit = text - np.uint8(48)
    ok = (digit[:, places] < 10).all(1)
    for place, mark in marks.items():
        ok &= text[:, place] == ord(mark)
    digit = digit.astype(np.int64)

    def number(first: int, last: int) -> np.ndarray:
        value = digit[:, first]
        for place in range(first + 1, last):
            value = value * 10 + digit[:, place]
        return value

    year, month, day = number(0, 4), number(5, 7), number(8, 10)
    hour, minute, second = number(11, 13), number(14, 16), number(17, 19)
    ok &= valid_dates(year, month, day) & (hour < 24) & (minute < 60) & (second < 60)
    seconds = days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    if offset:
        sign = text[:, end]
        ok &= (sign == ord("+")) | (sign == ord("-"))
        hours, minutes = number(end + 1, end + 3), number(end + 4, end + 6)
        ok &= (hours < 24) & (minutes < 60) & (year > 1) & (year < 9999)
        seconds -= np.where(sign == ord("+"), 1, -1) * (hours * 3600 + minutes * 60)
    micros = number(20, end) * 10 ** (6 - fraction) if fraction else 0
    return ok, seconds * 1_000_000 + micros
