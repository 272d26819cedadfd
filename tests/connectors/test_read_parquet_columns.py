"""Columns instead of documents: the same rows, ids, reasons and sealed documents, whatever the table looks like."""

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.connectors.inputs import plan_inputs
from headrace.connectors.json_rows import paths_of
from headrace.connectors.raw_blocks import BlockBuilder
from headrace.connectors.read_parquet import Documents, read_parquet
from headrace.connectors.read_parquet_columns import cells, read_parquet_columns
from headrace.schemas.errors import InputError
from headrace.transforms.base import Kernel
from headrace.transforms.column_texts import decimal_texts, json_texts
from headrace.transforms.column_tree import tree
from headrace.transforms.decode import DecodeKernel
from headrace.transforms.decode_columns import ColumnBatch, DecodeColumnsKernel, seal_documents
from headrace.transforms.keys import Key
from headrace.transforms.reject_stale import MAX_AGE, MAX_AHEAD, RejectStaleKernel
from headrace.transforms.validate import ValidateKernel
from tests.connectors.column_tables import AT, FAMILIES, ID, TIME, TYPES, VALUES, column, folded, tables

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
"""More for a long run: ``EXAMPLES=20000 pytest tests/connectors/test_read_parquet_columns.py``."""
NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("key") / "key", create=True)


class Both:
    """Both paths, each with the kernels that follow."""

    def __init__(self, key: Key, schema: str | None = None) -> None:
        self.key = key
        self.decode = DecodeKernel(key, schema=schema)
        self.columns = DecodeColumnsKernel(self.decode, schema=schema)
        rest: list[Kernel] = [ValidateKernel(key), RejectStaleKernel(MAX_AGE, MAX_AHEAD, key)]
        self.rest = rest
        for kernel in (self.decode, *rest):
            kernel.setup()

    def check(self, batch: ColumnBatch) -> None:
        assert self.run(batch, self.columns) == self.run(batch.raw(), self.decode)

    def run(self, batch: ColumnBatch | pa.RecordBatch, decode: Kernel) -> tuple[Rows, list[Rows]]:
        rejected = []
        rows = batch
        for kernel in (decode, *self.rest):
            rows, rejects = kernel(rows)
            rejected.append(seal_documents(rejects, batch, self.key).to_pylist())
            if not rows.num_rows:
                break
        return [
            {k: v for k, v in row.items() if k not in ("_raw", "_pending")} for row in rows.to_pylist()
        ], rejected


@pytest.fixture(scope="module")
def both(key: Key) -> Both:
    return Both(key)


def batch_of(columns: pa.RecordBatch) -> ColumnBatch:
    names = columns.schema.names
    paths = dict(zip(names, paths_of(names, "t"), strict=True))
    rows = columns.num_rows
    source = BlockBuilder("t.parquet", NOW).build(
        pa.nulls(rows, pa.binary()), pa.array(range(1, rows + 1), pa.int64())
    )
    return ColumnBatch(columns, paths, source, Documents(paths, None), cells)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
def test_columns_and_documents_give_the_same_rows(both: Both, table: pa.RecordBatch) -> None:
    both.check(batch_of(table))
    both.check(batch_of(table.slice(table.num_rows // 2)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nested", [False, True])
def test_sound_rows_need_no_document(family: str, nested: bool, key: Key) -> None:
    """All that real archives hold in these types is taken from the columns: nothing goes row by row."""
    for turn in range(6):
        columns = {}
        for name, sound in FAMILIES[family].items():
            kinds = [k for k in sorted(sound) if k not in ("fine",)]
            kind = kinds[turn % len(kinds)]
            columns[name] = column([sound[kind]] * 3, TYPES[kind])
        if nested:
            columns = folded(columns, [True] * 3)
        both = Both(key)
        both.check(batch_of(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))))
        assert both.columns.counts["decoded_row_by_row"] == 0, (turn, columns)


def test_rows_that_columns_can_not_prove_keep_their_place(both: Both) -> None:
    ids = [ID.format(n) for n in range(6)]
    batch = pa.RecordBatch.from_pydict(
        {
            "event_id": ids,
            "user_id": ["u", "", None, "u", "u", "u"],
            "timestamp": pa.array([AT, AT, AT, datetime(2020, 1, 1, tzinfo=UTC), AT, AT], TIME),
            "event_type": ["click", "click", "click", "click", "scroll", "click"],
            "size": [1.0, 2.0, 3.0, 4.0, float("nan"), 1e300],
        }
    )
    before = both.columns.counts["decoded_row_by_row"]
    rows, (decode, validate, time) = both.run(batch_of(batch), both.columns)
    assert [row["event_id"] for row in rows] == [ids[0], ids[5]]
    assert [r["reason"] for r in (*decode, *validate, *time)] == [
        "not_json",
        "min_length",
        "required",
        "stale",
    ]
    assert both.key.unseal(time[0]["document"]).startswith(
        b'{"event_id":"3f2b8c1e-9d4a-4e6b-8a7c-000000000003"'
    )
    assert both.columns.counts["decoded_row_by_row"] - before == 4
    both.check(batch_of(batch))


def test_a_stated_schema_counts_for_all_rows(key: Key) -> None:
    batch = pa.RecordBatch.from_pydict(
        {"user_id": ["u", None], "timestamp": pa.array([AT, AT], TIME), "event_id": [ID.format(1)] * 2}
    )
    Both(key, "interaction").check(batch_of(batch))
    Both(key, "weblog").check(batch_of(batch))


def test_text_that_is_no_utf8_goes_the_row_path(both: Both) -> None:
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffx"))
    ids = pa.array([ID.format(1), ID.format(2)])
    at = pa.array([AT, AT], TIME)
    batch = pa.RecordBatch.from_arrays(
        [ids, broken, at, broken], names=["event_id", "user_id", "timestamp", "event_type"]
    )
    both.check(batch_of(batch))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from(sorted(TYPES)).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(VALUES[k] | st.none(), max_size=5))
    )
)
def test_texts_are_those_of_the_documents(drawn: tuple[str, list[Any]]) -> None:
    kind, values = drawn
    array = column(values, TYPES[kind])
    texts = json_texts(array, False, cells)
    batch = batch_of(pa.RecordBatch.from_arrays([array], names=["a"]))
    whole = tree(batch.columns, batch.paths)
    for row, (document, fault) in enumerate(batch.documents(batch.columns)):
        if texts.known is not None and not texts.known[row]:
            continue
        assert fault is None
        text = texts.json()[row].as_py()
        assert document == (b"{}" if text is None else b'{"a":%s}' % text.encode())
        assert whole.mask.tolist() if text is not None else True


@given(st.lists(st.none() | st.decimals(-(10**13), 10**13, places=4), max_size=6), st.integers(0, 3))
def test_decimals_as_text(values: list[Decimal | None], skipped: int) -> None:
    array = pa.array(values, pa.decimal128(18, 4)).slice(min(skipped, len(values)))
    expected = [None if v is None else format(v, "f") for v in array.to_pylist()]
    assert decimal_texts(array).to_pylist() == expected


# Files ---------------------------------------------------------------------------------------------------------------


def events(rows: int) -> pa.Table:
    start = datetime(2026, 1, 5, 10)
    times = [start + timedelta(milliseconds=n) for n in range(rows)]
    return pa.table(
        {
            "event_id": [ID.format(n) for n in range(rows)],
            "user_id": [f"u{n % 50}" * 5 for n in range(rows)],
            "timestamp": pa.array(times, TIME),
            "event_type": ["click"] * rows,
            "arrived": pa.array(
                [t + timedelta(minutes=1) if n % 2 else None for n, t in enumerate(times)], pa.timestamp("ms")
            ),
        }
    )


def cells_of(raw: pa.RecordBatch) -> list[Any]:
    return list(zip(*(raw[n].to_pylist() for n in ("origin_position", "raw", "fault")), strict=True))


def test_files_give_the_blocks_of_the_row_reader(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(events(20_000), path, row_group_size=9_000, use_dictionary=False)
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data[chunk.data_page_offset + 40 : chunk.data_page_offset + 400] = b"\xff" * 360
    path.write_bytes(bytes(data))
    (split,) = plan_inputs([str(path)]).splits
    rows: list[Any] = []
    for each in read_parquet(split, ingest_time=NOW):
        rows += cells_of(each.raw)
    found, read_bytes, records = [], 0, 0
    for block in read_parquet_columns(split, ingest_time=NOW):
        raw = block.raw if isinstance(block.raw, pa.RecordBatch) else block.raw.raw()
        found += cells_of(raw)
        read_bytes += block.read_bytes
        records += block.records
    assert found == rows
    assert [r[2] for r in rows if r[2]] == ["broken_block"]
    assert records == len(rows)
    groups = [pq.read_metadata(path).row_group(n) for n in range(3)]
    assert read_bytes == sum(g.column(c).total_compressed_size for g in groups for c in range(5))


def test_row_groups_can_be_left_out_and_ingest_times_are_the_rows_own(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(events(3_000), path, row_group_size=1_000)
    (split,) = plan_inputs([str(path)]).splits
    (block,) = read_parquet_columns(split, ingest_time=NOW, ingest_column="arrived", groups=[1])
    assert isinstance(block.raw, ColumnBatch)
    assert block.raw.source["origin_position"].to_pylist() == list(range(1_001, 2_001))
    assert block.raw.columns.schema.names == ["event_id", "user_id", "timestamp", "event_type"]
    times = block.raw.source["ingest_time"].to_pylist()
    assert times[:2] == [NOW, datetime(2026, 1, 5, 10, 1, 1, 1_000, tzinfo=UTC)]
    assert b"arrived" not in block.raw.raw()["raw"][1].as_py()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(events(10), path)
    (split,) = plan_inputs([str(path)]).splits
    pq.write_table(events(11), path)
    with pytest.raises(InputError, match="it changed after the run was planned"):
        list(read_parquet_columns(split, ingest_time=NOW))
