"""Opening a quarantine and selecting rows of it."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.connectors.read_quarantine import (
    ROW_SCHEMA,
    Quarantine,
    all_of,
    compile_where,
    open_quarantine,
    select_rows,
)
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.schemas.failures import Failure
from tests.pipelines.quarantine.planted import START, Row, reject, selected, write_output

TYPE = [Failure("type", "/user/id", "expected string, found number")]


def rejects(count: int = 10) -> list[Row]:
    rows: list[Row] = []
    for n in range(count):
        at = START + timedelta(hours=4 * n)
        row = {
            "event_id": f"00000000-0000-4000-8000-{n:012d}",
            "event_time": at,
            "ingest_time": at,
            "schema": "commerce:1.0.0",
            "source": "o'shop" if n % 2 else None,
            "origin": "a.jsonl",
            "origin_position": n,
        }
        rows.append(reject(row, "validate", "type", TYPE) if n % 3 else reject(row, "time", "stale"))
    return rows


@pytest.fixture(params=[False, True], ids=["delta", "plain"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_output(tmp_path / "out", [], rejects(), plain=request.param)


def positions(out: Path, where: str | None) -> list[int]:
    return list(selected(out, where)["origin_position"].to_pylist())


def test_all_rows_come_in_order_with_all_columns(out: Path) -> None:
    table = selected(out, None)
    assert table.schema.equals(ROW_SCHEMA)
    assert table["origin_position"].to_pylist() == list(range(10))
    assert table["ingest_date"].to_pylist() == [(START + timedelta(hours=4 * n)).date() for n in range(10)]
    assert table["schema"].to_pylist() == ["commerce:1.0.0" for _ in range(10)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("reason = 'stale'", [0, 3, 6, 9]),
        ("source = 'o''shop'", [3, 9]),
        ("source IS NULL AND stage = 'time'", [0, 6]),
        ("ingest_date = DATE '2026-01-06'", [6, 7, 8, 9]),
        ("ingest_time >= TIMESTAMPTZ '2026-01-06 08:00Z'", [8, 9]),
        ("pointer LIKE '/user/%' AND origin_position < 3", [1, 2]),
        ("true", list(range(10))),
        ("CAST(NULL AS BOOLEAN)", []),
        ('contains(errors, \'"code":"type"\') -- the rest is a comment', [1, 2, 4, 5, 7, 8]),
    ],
)
def test_an_expression_selects_rows(out: Path, where: str, expected: list[int]) -> None:
    assert positions(out, where) == expected


def test_columns_are_projected_and_batches_bounded(out: Path) -> None:
    found = list(
        select_rows(
            open_quarantine(out), "stage = 'validate'", columns=["reason", "ingest_date"], rows_at_once=3
        )
    )
    assert all(b.schema.names == ["reason", "ingest_date"] and 0 < b.num_rows <= 3 for b in found)
    assert sum(b.num_rows for b in found) == 6
    assert found[0].column("ingest_date")[0].as_py() == date(2026, 1, 5)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "reson = 'type'",
            "--where names column 'reson', which the quarantine does not have; did you mean 'reason'?",
        ),
        ("reason =", "--where is no SQL expression"),
        ("reason", "--where is of type VARCHAR; it needs BOOLEAN"),
        (
            "1 = 1, 2 = 2",
            "--where is more than one SQL expression; give only what would follow WHERE, such as reason = 'type'",
        ),
        ("reason IN (SELECT 'type')", "--where has a subquery; it may only use the row's own columns"),
        ("random() < 0.5", "--where calls random()"),
    ],
)
def test_what_is_no_such_expression_is_said(where: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_where(where)
    assert message in str(caught.value) and "rule" not in str(caught.value)


def test_an_expression_that_fails_on_a_value_does_not_tell_the_value(out: Path) -> None:
    with pytest.raises(ConfigError, match=r"fails on a value of a row .*TRY_CAST") as caught:
        positions(out, "CAST(source AS INTEGER) = 1")
    assert "shop" not in str(caught.value)


def test_times_become_part_of_the_expression(out: Path) -> None:
    both = all_of("stage = 'time' OR stage = 'validate' -- all", "2026-01-05T12:00:00+01:00", "2026-01-06")
    assert both is not None and positions(out, both) == [3, 4, 5]
    assert positions(out, all_of(None, "2026-01-06T12:00:00Z")) == [9]
    assert all_of(None) is None and all_of("stage = 'time'") == "stage = 'time'"
    with pytest.raises(ConfigError, match="--since 'noon' is no time; write ISO 8601"):
        all_of(None, "noon")
    with pytest.raises(ConfigError, match="--since 2026-01-06 is not before --until 2026-01-05"):
        all_of(None, "2026-01-06", "2026-01-05")
    with pytest.raises(ConfigError, match="did you mean 'stage'"):
        all_of("stag = 'x'", "2026-01-06")


def test_later_commits_are_not_seen(tmp_path: Path) -> None:
    from headrace.connectors.delta_commit import commit_files
    from headrace.connectors.write_quarantine import QUARANTINE_TABLE_SCHEMA, QuarantineWriter
    from tests.pipelines.quarantine.planted import _batch

    out = write_output(tmp_path, [], rejects(4))
    before = open_quarantine(out)
    writer = QuarantineWriter(out / "quarantine", "later")
    writer.write(_batch(QUARANTINE_TABLE_SCHEMA.remove(len(QUARANTINE_TABLE_SCHEMA) - 1), rejects(3)))
    commit_files(
        out / "quarantine",
        QUARANTINE_TABLE_SCHEMA,
        writer.close(),
        app_id="x",
        version=1,
        partition_by=["ingest_date"],
    )
    assert sum(b.num_rows for b in select_rows(before)) == 4
    after = open_quarantine(out)
    assert sum(b.num_rows for b in select_rows(after)) == 7
    assert before.version is not None and after.version == before.version + 1


def test_files_that_no_commit_names_are_not_read(out: Path) -> None:
    folder = next((out / "quarantine").glob("ingest_date=*"))
    some = next(folder.glob("*.parquet"))
    (folder / "part-stray.parquet").write_bytes(some.read_bytes())
    assert positions(out, None) == list(range(10))


def test_an_older_table_without_a_column_has_nulls(tmp_path: Path) -> None:
    out = write_output(tmp_path, [], rejects(3), plain=True)
    for path in (out / "quarantine").rglob("*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["attempt"]), path)
    assert selected(out, None)["attempt"].to_pylist() == [None] * 3
    assert positions(out, "attempt IS NULL") == [0, 1, 2]


def test_what_is_no_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none does not exist; name the --output of a run"):
        open_quarantine(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is no output of a run \(it has no folder quarantine\)"):
        open_quarantine(tmp_path)
    out = write_output(tmp_path / "out", [], rejects(2))
    with pytest.raises(ConfigError, match=r"has no folder quarantine\); name .*/out$"):
        open_quarantine(out / "quarantine")
    with pytest.raises(ConfigError, match=r"columns \['color'\] are not in the quarantine"):
        select_rows(open_quarantine(out), columns=["color"])


def test_an_output_that_rejected_nothing_is_empty(tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_text("{}")
    assert open_quarantine(tmp_path) == Quarantine(tmp_path, None, ())
    assert list(select_rows(open_quarantine(tmp_path))) == []
    out = write_output(tmp_path / "plain", [], [], plain=True)
    assert open_quarantine(out).files == ()


def damage(path: Path, how: Any) -> None:
    path.unlink() if how == "gone" else path.write_bytes(b"PAR1")


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_file_is_named(out: Path, how: str) -> None:
    quarantine = open_quarantine(out)
    damage(Path(quarantine.paths[0]), how)
    with pytest.raises(UntrustedRunError, match=r"part-0\.parquet of the committed quarantine can't be read"):
        list(select_rows(quarantine))


def test_times_are_utc_whatever_the_machine_says(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert positions(out, "ingest_date = DATE '2026-01-06' AND hour(ingest_time) = 0") == [6]
    assert datetime(2026, 1, 6, tzinfo=UTC) == START + timedelta(hours=24)
