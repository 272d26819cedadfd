import datetime as dt
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.connectors.write_quarantine import QuarantineWriter, reasons_in
from headrace.schemas.columns import QUARANTINE_SCHEMA, RAW_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.schemas.failures import Failure
from headrace.transforms.batches import conform
from headrace.transforms.rejects import UNMASKED, no_rejects, rejected

JANUARY = dt.datetime(2026, 1, 5, 23, 59, 59, 999_999, tzinfo=dt.UTC)


def rejects(at, reasons, *, ingest=JANUARY, **columns):
    rows = len(reasons)
    given = {
        "ingest_time": pa.array([ingest] * rows, TIME),
        "origin": pa.array(["a.jsonl"] * rows),
        "origin_position": pa.array(range(1, rows + 1)),
        "stage": pa.array([at] * rows),
        "reason": pa.array(reasons),
        **columns,
    }
    return conform(given, QUARANTINE_SCHEMA, rows)


def test_rows_of_the_kernels_are_stored_by_the_day_they_reached_us(tmp_path):
    raw = conform(
        {"raw": pa.array([b"{"]), "origin": pa.array(["a"]), "ingest_time": pa.array([JANUARY], TIME)},
        RAW_SCHEMA,
        1,
    )
    sealed = pa.array([b"\x00sealed"])
    batch = rejected(
        raw, "decode", "not_json", failures=[[Failure("not_json", "", "no JSON")]], documents=sealed
    )
    writer = QuarantineWriter(tmp_path, "000001")
    writer.write(batch)
    writer.write(no_rejects())
    (file,) = writer.close()
    assert file.path == "ingest_date=2026-01-05/part-000001.parquet"
    assert file.partition == {"ingest_date": "2026-01-05"}
    assert file.stats["by_reason"] == {"decode": {"not_json": 1}}
    with pq.ParquetFile(tmp_path / file.path) as parquet:
        (row,) = parquet.read().to_pylist()
    assert list(row) == QUARANTINE_SCHEMA.names
    assert {k: v for k, v in row.items() if v is not None} == {
        "ingest_time": JANUARY,
        "origin": "a",
        "stage": "decode",
        "reason": "not_json",
        "pointer": "",
        "message": "no JSON",
        "errors": '[{"code":"not_json","pointer":"","message":"no JSON"}]',
        "document": b"\x00sealed",
        "attempt": 1,
    }


def test_dates_are_those_of_utc_and_counts_those_of_each_file(tmp_path):
    writer = QuarantineWriter(tmp_path, "a")
    writer.write(rejects("validate", ["missing", "bad_type", "missing"]))
    writer.write(rejects("decode", ["not_json"], ingest=JANUARY + dt.timedelta(microseconds=1)))
    writer.write(rejects("decode", ["not_json"]))
    writer.write(rejects("decode", ["not_json"], ingest=dt.datetime(1969, 12, 31, 23, tzinfo=dt.UTC)))
    files = writer.close()
    assert [(f.partition["ingest_date"], f.rows, f.stats["by_reason"]) for f in files] == [
        ("1969-12-31", 1, {"decode": {"not_json": 1}}),
        ("2026-01-05", 4, {"decode": {"not_json": 1}, "validate": {"bad_type": 1, "missing": 2}}),
        ("2026-01-06", 1, {"decode": {"not_json": 1}}),
    ]
    assert files == writer.close()
    assert files[1].stats["by_reason"] == reasons_in(tmp_path / files[1].path)


@pytest.mark.parametrize("column", UNMASKED)
def test_a_sensitive_column_of_a_stage_before_masking_stops_the_run(tmp_path, column):
    clear = pa.array([None, "jane@example.com"])
    writer = QuarantineWriter(tmp_path, "a", masked_stages={"deduplicate"})
    with pytest.raises(
        AssertionError, match=rf"column {column} is set in 1 rows rejected by validate, before masking"
    ) as caught:
        writer.write(rejects("validate", ["missing", "missing"], **{column: clear}))
    assert "jane" not in str(caught.value)
    writer.write(rejects("deduplicate", ["duplicate", "duplicate"], **{column: clear}))
    (file,) = writer.close()
    assert file.stats["by_reason"] == {"deduplicate": {"duplicate": 2}}
    with pq.ParquetFile(tmp_path / file.path) as parquet:
        assert parquet.read(columns=[column]).column(0).to_pylist() == [None, "jane@example.com"]


def test_stages_of_one_batch_are_told_apart(tmp_path):
    writer = QuarantineWriter(tmp_path, "a", masked_stages=["filter"])
    stages = pa.array(["filter", "decode"])
    writer.write(rejects("", ["x", "y"], stage=stages, city=pa.array(["Oslo", None])))
    with pytest.raises(AssertionError, match="column city is set in 1 rows rejected by decode"):
        writer.write(rejects("", ["x", "y"], stage=stages, city=pa.array([None, "Oslo"])))
    writer.discard()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("column", ["ingest_time", "stage", "reason"])
def test_a_row_that_could_not_be_counted_is_refused(tmp_path, column):
    nothing = pa.nulls(1, QUARANTINE_SCHEMA.field(column).type)
    with pytest.raises(ValueError, match=f"{column} is null in 1 rejected rows"):
        QuarantineWriter(tmp_path, "a").write(rejects("decode", ["x"], **{column: nothing}))


def test_other_columns_and_names_are_refused(tmp_path):
    with pytest.raises(KeyError, match="_raw"):
        QuarantineWriter(tmp_path, "a").write(
            rejects("decode", ["x"]).append_column("_raw", pa.array([b"clear"]))
        )
    with pytest.raises(ConfigError, match="name is 'a b'"):
        QuarantineWriter(tmp_path, "a b")


def test_no_rejects_give_no_file(tmp_path):
    writer = QuarantineWriter(tmp_path, "a")
    writer.write(no_rejects())
    assert writer.close() == []
    assert os.listdir(tmp_path) == []
