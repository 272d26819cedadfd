import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from headrace.connectors.write_lake import PartitionedWriter
from headrace.connectors.write_metrics import write_metrics
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines.commit import (
    commit_run,
    expected_ledger,
    publish_metrics,
    require_counted,
    written_files,
)
from headrace.pipelines.work_folder import Receipt, WorkFolder
from headrace.schemas.columns import ENRICHED_SCHEMA, QUARANTINE_SCHEMA
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.rejects import rejected
from headrace.transforms.window_definitions import Count, Sum, Windows
from tests.pipelines.small_output import NOW, batch


def events(*ids: str) -> pa.RecordBatch:
    n = len(ids)
    return batch(
        ENRICHED_SCHEMA,
        event_id=list(ids),
        event_time=[NOW] * n,
        event_date=[NOW.date()] * n,
        ingest_time=[NOW] * n,
    )


def rejects(reasons: list[str]) -> pa.RecordBatch:
    rows = batch(QUARANTINE_SCHEMA, ingest_time=[NOW] * len(reasons))
    return rejected(rows, "decode", pa.array(reasons))


def receipts(root: Path) -> list[Receipt]:
    """Two splits: three events and two rejected rows; one event and none; counts of both."""
    made = []
    for split, (ids, reasons) in enumerate([(["a", "b", "c"], ["x", "y"]), (["d"], [])]):
        lake = PartitionedWriter(root / "events", partition="event_date", name=f"run-{split}")
        lake.write(events(*ids))
        quarantine = QuarantineWriter(root / "quarantine", f"run-{split}")
        if reasons:
            quarantine.write(rejects(reasons))
        counts = {"mask.masked_cells": split + 1}
        made.append(Receipt(split, len(ids) + len(reasons), lake.close(), quarantine.close(), counts))
    return made


def commit(out: Path, root: Path, made: list[Receipt], lake_format: str, called: list[str]) -> Any:
    return commit_run(
        out,
        root,
        made,
        lake_format=lake_format,
        lake_schema=ENRICHED_SCHEMA,
        app_id="app",
        on_committed=lambda: called.append("committed"),
    )


@pytest.mark.parametrize("lake_format", ["delta", "parquet"])
def test_a_commit_publishes_the_files_of_the_receipts_and_counts_their_rows(
    lake_format: str, tmp_path: Path
) -> None:
    root = tmp_path if lake_format == "delta" else tmp_path / "_work" / "tables"
    made = receipts(root)
    called: list[str] = []
    first = commit(tmp_path, root, made, lake_format, called)
    second = commit(tmp_path, root, made, lake_format, called)
    ledger, counts = first
    assert first == second
    assert called == ["committed"] * 2
    assert ledger.as_dict() == {
        "rows_in": 6,
        "accepted": 4,
        "rejected": {"decode": {"x": 1, "y": 1}},
        "balanced": True,
    }
    assert counts == {"mask.masked_cells": 3}
    found = pq.read_table(
        tmp_path / "events" if lake_format == "parquet" else DeltaTable(str(tmp_path / "events")).file_uris()
    )
    assert sorted(found["event_id"].to_pylist()) == ["a", "b", "c", "d"]


def test_a_run_without_rows_leaves_empty_tables(tmp_path: Path) -> None:
    ledger, counts = commit(tmp_path, tmp_path, [], "delta", [])
    assert (ledger.rows_in, ledger.accepted, ledger.rejected, counts) == (0, 0, {}, {})
    assert DeltaTable(str(tmp_path / "events")).to_pyarrow_table().num_rows == 0


def test_the_expected_ledger_comes_from_the_receipts(tmp_path: Path) -> None:
    made = receipts(tmp_path)
    assert expected_ledger(made).as_dict() == commit(tmp_path, tmp_path, made, "delta", [])[0].as_dict()
    made[1].rows_in += 1
    assert not expected_ledger(made).balanced
    assert expected_ledger([]).balanced


def test_written_files_are_where_the_workers_wrote_them(tmp_path: Path) -> None:
    found = written_files(tmp_path, receipts(tmp_path))
    assert len(found) == 3
    assert set(found) == set(tmp_path.rglob("*.parquet"))


METRICS = {
    "all": Windows(measures={"rows": Count(), "revenue": Sum("revenue")}),
    "some": Windows(measures={"rows": Count()}, where={"revenue": "*"}),
    "sums": Windows(measures={"revenue": Sum("revenue")}),
}


def test_metrics_that_count_every_row_must_count_those_of_the_lake(tmp_path: Path) -> None:
    for name, counts in (("all", [2, 1]), ("some", [1]), ("sums", [7])):
        write_metrics(tmp_path, name, pa.table({"rows": counts}))
    require_counted(tmp_path, METRICS, 3)
    for accepted in (2, 4):
        with pytest.raises(
            UntrustedRunError,
            match=f"metric all counts 3 rows in rows, the lake's {accepted} would be {accepted}",
        ):
            require_counted(tmp_path, METRICS, accepted)


def test_metrics_are_published_at_once_and_replace_older_ones(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    write_metrics(tmp_path / "metrics", "old", pa.table({"rows": [1]}))
    write_metrics(work.metrics, "all", pa.table({"rows": [2]}))
    publish_metrics(work, tmp_path)
    publish_metrics(work, tmp_path)
    assert [p.name for p in (tmp_path / "metrics").iterdir()] == ["all"]
    assert pq.read_table(tmp_path / "metrics" / "all" / "part-0.parquet").to_pydict() == {"rows": [2]}


def test_a_receipt_survives_its_file(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.create()
    made = receipts(tmp_path)
    for receipt in made:
        work.write_receipt(receipt)
    assert work.receipts(2) == made
    stored = json.loads((work.root / "receipts" / "000000.json").read_bytes())
    assert stored["quarantine"][0]["stats"]["by_reason"] == {"decode": {"x": 1, "y": 1}}
