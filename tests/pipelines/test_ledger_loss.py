"""A row that any stage loses, or makes, is seen: the run ends as untrusted and publishes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.connectors import read_split
from headrace.connectors.raw_blocks import Block
from headrace.connectors.stage import StageWriter
from headrace.connectors.write_lake import PartitionedWriter, WrittenFile
from headrace.connectors.write_quarantine import QuarantineWriter
from headrace.pipelines import commit, finish_split_fn, pane_partials, read_stage_fn
from headrace.pipelines.work_folder import WorkFolder
from headrace.schemas.errors import UntrustedRunError
from headrace.transforms.base import Outcome
from headrace.transforms.decode import DecodeKernel
from headrace.transforms.enrich import EnrichKernel
from headrace.transforms.enrich_country import CountryKernel
from headrace.transforms.filter_events import FilterKernel
from headrace.transforms.mask_pii import MaskKernel
from headrace.transforms.reject_stale import RejectStaleKernel
from headrace.transforms.validate import ValidateKernel
from tests.pipelines.conftest import Simulated
from tests.pipelines.runs import ledger, run

pytestmark = pytest.mark.integration

Patch = pytest.MonkeyPatch
Alter = Callable[[pa.RecordBatch], pa.RecordBatch]


def without_one(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(1)


def with_double(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array([0, *range(batch.num_rows)]))


class Once:
    """Alters the first batch that has rows, and no other."""

    def __init__(self, alter: Alter) -> None:
        self._alter = alter
        self.done = False

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self.done or not batch.num_rows:
            return batch
        self.done = True
        return self._alter(batch)


def kernel(cls: type, side: str) -> Callable[[Patch, Once], None]:
    def patch(monkeypatch: Patch, once: Once) -> None:
        call = cls.__call__

        def altered(self: Any, batch: pa.RecordBatch) -> Outcome:
            outcome = call(self, batch)
            return outcome._replace(**{side: once(getattr(outcome, side))})

        monkeypatch.setattr(cls, "__call__", altered)

    return patch


def method(cls: type, name: str) -> Callable[[Patch, Once], None]:
    """Alters the batch that a writer is given."""

    def patch(monkeypatch: Patch, once: Once) -> None:
        write = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, batch: write(self, once(batch)))

    return patch


def reader(monkeypatch: Patch, once: Once) -> None:
    def altered(*arguments: Any, **settings: Any) -> Any:
        for block in read_split.read_split(*arguments, **settings):
            yield Block(once(block.raw), block.read_bytes, block.records)

    monkeypatch.setattr(read_stage_fn, "read_split", altered)


def settled(side: str) -> Callable[[Patch, Once], None]:
    def patch(monkeypatch: Patch, once: Once) -> None:
        settle = finish_split_fn.settle

        def altered(*arguments: Any) -> Outcome:
            outcome = settle(*arguments)
            return outcome._replace(**{side: once(getattr(outcome, side))})

        monkeypatch.setattr(finish_split_fn, "settle", altered)

    return patch


def stage_reader(monkeypatch: Patch, once: Once) -> None:
    read = finish_split_fn.read_stage
    monkeypatch.setattr(finish_split_fn, "read_stage", lambda path: map(once, read(path)))


def lake_writer(monkeypatch: Patch, once: Once) -> None:
    class Writer(PartitionedWriter):
        def write(self, batch: pa.RecordBatch) -> None:
            super().write(once(batch))

    monkeypatch.setattr(finish_split_fn, "PartitionedWriter", Writer)


PLACES: dict[str, Callable[[Patch, Once], None]] = {
    "read": reader,
    "decode accepted": kernel(DecodeKernel, "accepted"),
    "decode rejected": kernel(DecodeKernel, "rejected"),
    "validate accepted": kernel(ValidateKernel, "accepted"),
    "validate rejected": kernel(ValidateKernel, "rejected"),
    "time accepted": kernel(RejectStaleKernel, "accepted"),
    "time rejected": kernel(RejectStaleKernel, "rejected"),
    "country": kernel(CountryKernel, "accepted"),
    "mask": kernel(MaskKernel, "accepted"),
    "stage file written": method(StageWriter, "write"),
    "stage file read": stage_reader,
    "dedupe accepted": settled("accepted"),
    "dedupe rejected": settled("rejected"),
    "enrich": kernel(EnrichKernel, "accepted"),
    "rules accepted": kernel(FilterKernel, "accepted"),
    "rules rejected": kernel(FilterKernel, "rejected"),
    "lake written": lake_writer,
    "quarantine written": method(QuarantineWriter, "write"),
}


def published(out: Path) -> int:
    """Returns how many rows and files a reader of the output sees."""
    rows = sum(
        DeltaTable(str(out / name)).to_pyarrow_table().num_rows
        for name in ("events", "quarantine")
        if DeltaTable.is_deltatable(str(out / name))
    )
    return rows + len(list((out / "metrics").rglob("*.parquet")))


def check_untrusted(
    out: Path, error: pytest.ExceptionInfo[UntrustedRunError], gap: int, rows_in: int
) -> None:
    text = "1 row is missing" if gap > 0 else "1 row is there without having come in"
    assert text in str(error.value)
    found = ledger(out)
    assert found["balanced"] is False
    assert found["rows_in"] == rows_in
    rejected = sum(sum(reasons.values()) for reasons in found["rejected"].values())
    assert found["rows_in"] - found["accepted"] - rejected == gap
    assert json.loads((out / "manifest.json").read_bytes())["status"] == "started"
    assert published(out) == 0


@pytest.mark.parametrize("place", PLACES)
def test_a_row_lost_anywhere_ends_the_run(
    place: str, small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    once = Once(without_one)
    PLACES[place](monkeypatch, once)
    with pytest.raises(UntrustedRunError) as error:
        run(small.path, tmp_path / "out", key, now=small.truth["now"], rules={"ticks": "event_type = 'tick'"})
    assert once.done
    check_untrusted(tmp_path / "out", error, 1, 240)


@pytest.mark.parametrize("place", ["decode accepted", "stage file read", "enrich", "quarantine written"])
def test_a_row_made_twice_ends_the_run(
    place: str, small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    PLACES[place](monkeypatch, Once(with_double))
    with pytest.raises(UntrustedRunError) as error:
        run(small.path, tmp_path / "out", key, now=small.truth["now"])
    check_untrusted(tmp_path / "out", error, -1, 240)


def test_a_file_that_the_commit_forgets_ends_the_run(
    small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    commit_files = commit.commit_files

    def forgetful(root: Path, schema: pa.Schema, files: list[WrittenFile], **settings: Any) -> bool:
        return commit_files(root, schema, files[1:], **settings)

    monkeypatch.setattr(commit, "commit_files", forgetful)
    with pytest.raises(UntrustedRunError, match=r"is not part of table .*/events: it was never committed"):
        run(small.path, tmp_path / "out", key, now=small.truth["now"])
    assert not (tmp_path / "out" / "ledger.json").exists()
    assert json.loads((tmp_path / "out" / "manifest.json").read_bytes())["status"] != "done"


def test_a_row_that_only_the_windows_lose_ends_the_run(
    small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    rows, once = pane_partials.Rows, Once(without_one)
    monkeypatch.setattr(pane_partials, "Rows", lambda batch: rows(once(batch)))
    accepted = small.truth["classes"]["accepted"]
    text = (
        f"events_per_minute counts {accepted - 1} rows in events, the lake's {accepted} would be {accepted}"
    )
    with pytest.raises(UntrustedRunError, match=text):
        run(small.path, tmp_path / "out", key, now=small.truth["now"])
    assert published(tmp_path / "out") == 0


def test_a_split_without_receipt_ends_the_run(
    small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(WorkFolder, "write_receipt", lambda self, receipt: None)
    with pytest.raises(
        UntrustedRunError, match=r"split 0 of 1 left no receipt .* run the same command again"
    ):
        run(small.path, tmp_path / "out", key, now=small.truth["now"])
    assert published(tmp_path / "out") == 0
