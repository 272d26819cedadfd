"""Date-times: the columnar parser proves only what the row-wise one, and datetime, read the same way."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.schemas.rfc3339 import parse_column, parse_one

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SHAPED = st.from_regex(
    r"(0001|1[69]\d\d|20\d\d|9999)-[01]\d-[0-3]\d[Tt ][0-2]\d:[0-6]\d:[0-6]\d(\.\d{1,7})?([Zz]|[+-][0-2]\d:[0-6]\d)?",
    fullmatch=True,
)


@given(st.lists(SHAPED | st.none() | st.text(max_size=30), max_size=8), st.integers(0, 3))
@example(["2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2000-02-29T00:00:00Z"], 0)
@example(["2016-12-31T23:59:60Z", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"], 1)
def test_column_agrees_with_one_by_one(texts, cut):
    proven, micros = parse_column(pa.array(texts, pa.string()).slice(cut))
    for text, sure, value in zip(texts[cut:], proven.tolist(), micros.tolist(), strict=True):
        if sure:
            assert (
                parse_one(text)
                == value
                == (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)
            )


def test_common_shapes_are_proven():
    texts = [f"2026-01-05T10:00:00{f}{z}" for f in ("", ".123", ".123456") for z in ("Z", "+05:30", "-08:00")]
    proven, _ = parse_column(pa.array(texts))
    assert proven.all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2026-01-05t10:00:00.1234567891z", datetime(2026, 1, 5, 10, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-05T10:00:00-01:30", datetime(2026, 1, 5, 11, 30, tzinfo=UTC)),
    ],
)
def test_rare_shapes_are_read_one_by_one(text, expected):
    assert parse_one(text) == (expected - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text",
    [
        "2023-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "today",
        "２０２６-01-05T10:00:00Z",
    ],
)
def test_what_is_no_time_is_refused(text):
    assert parse_one(text) is None
