import contextlib
import datetime as dt
import os
import resource
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.atomic_file import OutputError
from headrace.connectors.write_metrics import write_metrics
from headrace.schemas.columns import CODE, MONEY, TIME
from headrace.schemas.errors import ConfigError


def counts(rows):
    return pa.table(
        {
            "window_start": pa.array(
                [dt.datetime(2026, 1, 5, 0, m, tzinfo=dt.UTC) for m, _, _ in rows], TIME
            ),
            "event_type": pa.array([kind for _, kind, _ in rows], pa.string()).dictionary_encode().cast(CODE),
            "revenue": pa.array([None if r is None else Decimal(r) / 100 for _, _, r in rows], MONEY),
        }
    )


def test_rows_are_sorted_from_left_to_right(tmp_path):
    file = write_metrics(
        tmp_path, "per_minute", counts([(2, "click", 1), (1, "view", None), (1, "view", 7), (1, None, 0)])
    )
    assert (file.path, file.rows) == ("per_minute/part-0.parquet", 4)
    assert file.size_bytes == os.path.getsize(tmp_path / file.path)
    found = duckdb.execute(
        f"select minute(window_start), event_type, revenue::double from '{tmp_path}/per_minute/*.parquet'"
    ).fetchall()
    assert found == [(1, "view", 0.07), (1, "view", None), (1, None, 0.0), (2, "click", 0.01)]
    schema = pq.read_schema(tmp_path / file.path)
    assert schema.types == [TIME, pa.string(), MONEY]


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["click", "view", None]), st.none() | st.integers(0, 3)),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, random=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_change_a_byte(tmp_path_factory, rows, random):
    root = tmp_path_factory.mktemp("metrics")
    shuffled = random.sample(rows, len(rows))
    one = write_metrics(root, "one", counts(rows))
    two = write_metrics(root, "two", pa.concat_tables([counts(shuffled[:5]), counts(shuffled[5:])]))
    assert (root / one.path).read_bytes() == (root / two.path).read_bytes()
    assert pq.read_metadata(root / one.path).num_rows == len(rows)


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    file = write_metrics(tmp_path, "none", counts([]))
    assert file.rows == 0
    assert pq.read_schema(tmp_path / file.path).names == ["window_start", "event_type", "revenue"]


def test_a_rerun_replaces_the_file(tmp_path):
    write_metrics(tmp_path, "a", counts([(1, "x", 1)]))
    write_metrics(tmp_path, "a", counts([(1, "x", 1)]))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["part-0.parquet"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    file = write_metrics(tmp_path, "a", counts([(1, "x", 1)]))
    before = (tmp_path / file.path).read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(OutputError, match=r"a/part-0\.parquet can't be written"),
        contextlib.ExitStack() as stack,
    ):
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, old)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, old[1]))
        write_metrics(tmp_path, "a", counts([(m, f"kind {m}", m) for m in range(50)]))
    assert (tmp_path / file.path).read_bytes() == before
    assert os.listdir(tmp_path / "a") == ["part-0.parquet"]


def test_bad_names_and_columns_are_refused(tmp_path):
    for name in ("", "a/b", "..", "größe"):
        with pytest.raises(ConfigError, match="use letters, digits, _ and - only"):
            write_metrics(tmp_path, name, counts([]))
    with pytest.raises(ConfigError, match=r"metrics table a: columns \['x'\] are nested"):
        write_metrics(tmp_path, "a", pa.table({"x": [[1]]}))
