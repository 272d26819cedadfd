import math
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipelines.verify.column_types import common_type
from headrace.pipelines.verify.compare_tables import Terms, compare_tables
from headrace.pipelines.verify.comparison import TableComparison
from headrace.pipelines.verify.stored_tables import create_view, find_tables, open_database
from headrace.pipelines.verify.tolerance import Tolerance
from headrace.schemas.errors import ConfigError, InputError

TIME = pa.timestamp("us", "UTC")


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with open_database() as connection:
        yield connection


@pytest.fixture
def compare(database: duckdb.DuckDBPyConnection) -> Any:
    def compared(a: Any, b: Any, **terms: Any) -> TableComparison:
        return compare_in(database, a, b, **terms)

    return compared


def compare_in(database: duckdb.DuckDBPyConnection, a: Any, b: Any, **terms: Any) -> TableComparison:
    database.register("a", pa.table(a))
    database.register("b", pa.table(b))
    return compare_tables(database, "a", "b", name="t", terms=Terms(**terms))


def test_equal_tables_are_equal_in_any_order_type_and_layout(compare: Any) -> None:
    a = {
        "id": pa.array([1, 2, None], pa.int64()),
        "price": pa.array([Decimal("1.50"), None, Decimal("2")], pa.decimal128(38, 9)),
        "share": [math.nan, 0.0, None],
        "at": pa.array([1, 2, None], TIME),
        "kind": pa.array(["x", "y", None]).dictionary_encode(),
        "tags": [["a", None], [], None],
        "nothing": pa.nulls(3),
    }
    b = {
        "nothing": pa.array([None] * 3, pa.string()),
        "tags": [None, [], ["a", None]],
        "kind": pa.array([None, "y", "x"], pa.large_string()),
        "at": pa.array([None, 2, 1], pa.timestamp("us")),
        "share": [None, -0.0, math.nan],
        "price": pa.array([Decimal("2.0"), None, Decimal("1.5")], pa.decimal128(9, 2)),
        "id": pa.array([None, 2, 1], pa.int16()),
    }
    for key in (["id"], []):
        found = compare(a, b, key=key)
        assert found.equal, found
        assert (found.rows_a, found.rows_b, found.rows_compared) == (3, 3, 3)
        assert not found.columns and not found.other_types


def test_differences_are_counted_measured_and_shown_by_key(compare: Any) -> None:
    a = {"id": [1, 2, 3, 4], "n": [10, 20, None, 5], "at": pa.array([0, 0, 0, 0], TIME), "text": list("abcd")}
    b = {
        "id": [1, 2, 3, 5],
        "n": [10, 25, 7, 5],
        "at": pa.array([0, 2_500_000, 0, 0], TIME),
        "text": ["a", "b", "C", "d"],
    }
    found = compare(a, b, key=["id"])
    assert (found.equal, found.rows_compared, found.rows_differing) == (False, 3, 2)
    assert (found.only_in_a, found.examples_only_in_a) == (1, [{"id": "4"}])
    assert (found.only_in_b, found.examples_only_in_b) == (1, [{"id": "5"}])
    assert set(found.columns) == {"n", "at", "text"}
    n = found.columns["n"]
    assert (n.cells, n.largest_absolute, n.largest_relative) == (2, 5.0, 0.2)
    assert n.examples == [
        {"key": {"id": "2"}, "a": "20", "b": "25"},
        {"key": {"id": "3"}, "a": None, "b": "7"},
    ]
    assert (found.columns["at"].cells, found.columns["at"].largest_absolute) == (1, 2.5)
    assert (found.columns["text"].cells, found.columns["text"].largest_absolute) == (1, None)


def test_examples_are_limited_and_come_first_by_key(compare: Any) -> None:
    a, b = {"id": list(range(9)), "n": [0] * 9}, {"id": list(range(8, -1, -1)), "n": [1] * 9}
    found = compare(a, b, key=["id"], examples=2)
    assert [e["key"] for e in found.columns["n"].examples] == [{"id": "0"}, {"id": "1"}]
    assert compare(a, b, key=["id"], examples=0).columns["n"].examples == []
    assert len(compare(a, {"id": [99], "n": [0]}, key=["id"], examples=3).examples_only_in_a) == 3


@pytest.mark.parametrize(
    ("type_", "a", "b", "tolerance", "equal"),
    [
        (pa.float64(), 100.0, 100.01, "0.01", True),
        (pa.float64(), 100.0, 100.0101, "0.01", False),
        (pa.float64(), 100.0, 101.0, "1%", True),
        (pa.float64(), 100.0, 101.1, "1%", False),
        (pa.float64(), math.nan, 1.0, "9%", False),
        (pa.float64(), math.inf, 1.0, "9", False),
        (pa.float64(), None, 0.0, "9", False),
        (pa.int64(), 5, 7, "2", True),
        (pa.int64(), 5, 7, "1.9", False),
        (pa.int64(), -(2**62), 2**62, "1", False),
        (pa.decimal128(38, 9), Decimal("1.000000001"), Decimal("1.01"), "0.009999999", True),
        (pa.decimal128(38, 9), Decimal("1"), Decimal("1.01"), "0.009999999", False),
        (pa.decimal128(10, 2), Decimal("1.00"), Decimal("1.01"), "0.009", False),
        (pa.decimal128(38, 0), Decimal(10) ** 37, -(Decimal(10) ** 37), "1", False),
        (pa.decimal128(38, 9), Decimal("200"), Decimal("202"), "1%", True),
    ],
)
def test_tolerances(compare: Any, type_: pa.DataType, a: Any, b: Any, tolerance: str, equal: bool) -> None:
    sides = ({"id": [1, 2], "n": pa.array([x, None], type_)} for x in (a, b))
    found = compare(*sides, key=["id"], tolerances={"n": Tolerance.parse(tolerance)})
    assert found.equal is equal
    assert (found.columns["n"].cells, found.columns["n"].within_tolerance) == ((0, 1) if equal else (1, 0))


def test_decimals_without_tolerance_are_compared_to_the_last_digit(compare: Any) -> None:
    big = Decimal("12345678901234567890.123456789")
    a, b = (pa.array([x], pa.decimal128(38, 9)) for x in (big, big + Decimal("0.000000001")))
    assert not compare({"id": [1], "n": a}, {"id": [1], "n": b}, key=["id"]).equal
    assert compare({"id": [1], "n": a}, {"id": [1], "n": a}, key=["id"]).equal


@pytest.mark.parametrize("text", ["x", "", "-1", "nan", "inf", "1%%"])
def test_a_tolerance_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give 0\.01 for an absolute one, 1% for a relative one"):
        Tolerance.parse(text)


def test_rows_of_a_repeated_key_are_compared_as_a_multiset(compare: Any) -> None:
    a = {"id": [1, 1, 1, 2], "n": [1, 2, 2, 9]}
    found = compare(a, {"id": [2, 1, 1, 1], "n": [9, 2, 1, 2]}, key=["id"])
    assert (found.equal, found.repeated_keys_a, found.repeated_keys_b) == (True, 1, 1)
    found = compare(a, {"id": [1, 1, 2], "n": [2, 3, 9]}, key=["id"])
    assert (found.rows_compared, found.rows_differing, found.only_in_a, found.only_in_b) == (3, 1, 1, 0)
    assert found.columns["n"].examples == [{"key": {"id": "1"}, "a": "1", "b": "3"}]


rows = st.lists(
    st.tuples(st.sampled_from([None, "k", "l"]), st.sampled_from([None, 1, 2]), st.sampled_from([None, "x"])),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(left=rows, right=rows)
def test_whole_rows_and_keyed_rows_agree_with_counters(
    database: duckdb.DuckDBPyConnection, left: Any, right: Any
) -> None:
    """Without key: what counters leave. With key: as many rows, of which as many as can be have a partner."""
    types = {"k": pa.string(), "n": pa.int64(), "t": pa.string()}
    a, b = (
        {name: pa.array([row[i] for row in side], type_) for i, (name, type_) in enumerate(types.items())}
        for side in (left, right)
    )
    over, under = Counter(left) - Counter(right), Counter(right) - Counter(left)
    found, keyed = compare_in(database, a, b), compare_in(database, a, b, key=["k"])
    assert (found.only_in_a, found.only_in_b) == (over.total(), under.total())
    assert found.rows_compared == len(left) - over.total()
    assert found.equal == (not over and not under)
    left_over, right_over = (Counter(k for k, *_ in side.elements()) for side in (over, under))
    assert (keyed.only_in_a, keyed.only_in_b) == (
        (left_over - right_over).total(),
        (right_over - left_over).total(),
    )
    assert keyed.rows_differing == (left_over & right_over).total()
    assert keyed.equal == found.equal


def test_columns_and_types_that_do_not_match_are_listed(compare: Any) -> None:
    a = {"id": [1], "mine": [1], "both": [1], "same": [b"x"], "off": [1]}
    b = {"id": [1], "yours": [1], "both": ["1"], "same": [b"x"], "off": [2]}
    found = compare(a, b, key=["id"], ignore=["off"])
    assert (found.columns_only_in_a, found.columns_only_in_b) == (["mine"], ["yours"])
    assert found.other_types == {"both": ("BIGINT", "VARCHAR")}
    assert (found.ignored, found.rows_differing, found.equal) == (["off"], 0, False)
    assert compare(a, b, key=["id"], ignore=["off", "mine", "yours", "both"]).equal


def test_values_are_hidden_where_it_is_asked_for(compare: Any) -> None:
    a = {"id": ["k"], "mail": ["ada@example.org"], "raw": [b"secret"], "n": [1], "tags": [["ada"]]}
    b = {"id": ["k"], "mail": ["bob@example.org!"], "raw": [b"other"], "n": [2], "tags": [["bob"]]}
    found = compare(a, b, key=["id"], hide_text=True)
    assert found.columns["n"].examples == [{"key": {"id": "k"}, "a": "1", "b": "2"}]
    shown = str(found.as_dict())
    assert "example.org" not in shown and "secret" not in shown and "ada" not in shown
    assert found.columns["mail"].examples[0]["b"] == "(16 characters, not shown)"
    assert found.columns["raw"].examples[0]["a"] == "(6 bytes)"
    assert "secret" not in str(compare(a, b).as_dict()) and "ada@example.org" in str(compare(a, b).as_dict())
    assert "ada@example.org" not in str(compare(a, b, hidden=["mail"]).as_dict())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"key": ["idd"]}, "A has no column 'idd' for the key; did you mean 'id'?"),
        ({"key": ["only_a"]}, "B has no column 'only_a' for the key"),
        ({"key": ["mixed"]}, "key column 'mixed' is BIGINT in A and VARCHAR in B"),
        ({"key": ["id"], "tolerances": {"text": Tolerance.parse("1")}}, "'text' is VARCHAR; only numbers have a tolerance"),
        ({"key": ["id"], "tolerances": {"id": Tolerance.parse("1")}}, "'id' is part of the key"),
        ({"tolerances": {"n": Tolerance.parse("1")}}, "name the columns that identify a row with --key"),
    ],
)  # fmt: skip
def test_wrong_terms_are_refused(compare: Any, terms: Any, message: str) -> None:
    a = {"id": [1], "only_a": [1], "mixed": [1], "text": ["x"], "n": [1]}
    with pytest.raises(ConfigError) as caught:
        compare(a, {"id": [1], "mixed": ["1"], "text": ["x"], "n": [1]}, **terms)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b", "sql"),
    [
        ("TINYINT", "UINTEGER", "BIGINT"), ("BIGINT", "UBIGINT", "HUGEINT"), ("INTEGER", "DECIMAL(10,2)", "DECIMAL(21,2)"),
        ("DECIMAL(38,9)", "DECIMAL(38,2)", "DECIMAL(38,9)"), ("FLOAT", "DECIMAL(5,1)", "DOUBLE"), ("UUID", "VARCHAR", "VARCHAR"),
        ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP_MS", "TIMESTAMP"), ("TIMESTAMPTZ_NS", "TIMESTAMP", "TIMESTAMP_NS"),
        ("DATE", "TIMESTAMP", "TIMESTAMP"), ("DATE", "DATE", "DATE"), ('"NULL"', "DATE", "DATE"), ("BLOB", "BLOB", "BLOB"),
        ("TIME", "TIME_NS", "TIME_NS"), ("VARCHAR[]", "VARCHAR[]", "VARCHAR[]"), ("BOOLEAN", "BIGINT", None),
        ("DATE", "VARCHAR", None),
    ],
)  # fmt: skip
def test_the_type_that_both_sides_are_compared_in(a: str, b: str, sql: str | None) -> None:
    for found in (common_type(a, b), common_type(b, a)):
        assert (found and found.sql) == sql


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_tables_are_found_by_path_and_read_whatever_their_layout(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    write_deltalake(
        str(root / "delta"),
        pa.table({"id": [1, 2], "day": ["01", "x y"]}),
        partition_by=["day"],
        mode="append",
    )
    write_deltalake(
        str(root / "delta"),
        pa.table({"id": [3], "day": ["01"], "new": [7]}),
        mode="append",
        schema_mode="merge",
    )
    write_deltalake(
        str(root / "deep" / "empty"),
        pa.table({"id": pa.array([], pa.int64()), "d": pa.array([], pa.date32())}),
    )
    write(root / "hive" / "date=2026-01-05" / "a.parquet", id=[1])
    write(root / "hive" / "date=2026-01-06" / "b.parquet", id=[2], more=["x"])
    write(root / "plain [x]*?" / "a.parquet", id=[1])
    write(root / "_hidden" / "a.parquet", id=[1])
    write(root / "plain [x]*?" / "_temporary" / "b.parquet", id=[2])
    (root / "deep" / "readme.txt").write_text("x")
    found = find_tables(root)
    assert list(found) == ["deep/empty", "delta", "hive", "plain [x]*?"]
    with open_database() as connection:
        types = {name: create_view(connection, name, table) for name, table in found.items()}
        rows = {name: sorted(connection.execute(f'FROM "{name}"').fetchall()) for name in found}
    assert types["delta"] == {"id": "BIGINT", "day": "VARCHAR", "new": "BIGINT"}
    assert rows["delta"] == [(1, "01", None), (2, "x y", None), (3, "01", 7)]
    assert types["deep/empty"] == {"id": "BIGINT", "d": "DATE"} and rows["deep/empty"] == []
    assert types["hive"] == {"id": "BIGINT", "more": "VARCHAR", "date": "DATE"}
    assert [row[:2] for row in rows["hive"]] == [(1, None), (2, "x")] and rows["plain [x]*?"] == [(1,)]
    assert list(find_tables(root / "plain [x]*?")) == ["plain [x]*?"]
    assert list(find_tables(root / "plain [x]*?" / "a.parquet")) == ["a.parquet"]
    with pytest.raises(InputError, match="does not exist; name an output"):
        find_tables(root / "none")
    with pytest.raises(InputError, match="is no Parquet file"):
        find_tables(root / "deep" / "readme.txt")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.parquet").write_bytes(b"PAR1 and no more")
    with open_database() as connection, pytest.raises(InputError, match=r"table .*t can't be read"):
        create_view(connection, "t", find_tables(tmp_path)["t"])


def test_an_aggregate_larger_than_memory_spills(tmp_path: Path) -> None:
    """300,000 rows of some 100 bytes on each side, with 64 MB."""
    number = pa.array(range(300_000))
    text = pa.array([f"{i:0100d}" for i in range(300_000)])
    for side, values in (("a", number), ("b", pa.array([*range(299_999), -1]))):
        write(tmp_path / side / "x.parquet", id=number, n=values, text=text)
    with open_database("64MB") as connection:
        for side in "ab":
            create_view(connection, side, find_tables(tmp_path / side)[side])
        found = compare_tables(connection, "a", "b", name="t", terms=Terms(key=["id"]))
    assert (found.rows_compared, found.rows_differing) == (300_000, 1)
    assert found.columns["n"].examples == [{"key": {"id": "299999"}, "a": "299999", "b": "-1"}]
