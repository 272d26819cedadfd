import json
from collections import Counter
from pathlib import Path

import pytest

from headrace.pipelines import work_folder
from headrace.pipelines.work_folder import ProgressFile, Receipt, WorkFolder
from headrace.schemas.errors import UntrustedRunError


def test_creating_it_anew_forgets_what_a_killed_run_left(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.create()
    work.write_receipt(Receipt(0, 5))
    work.mark_complete([])
    Path(work.stage(7)).write_bytes(b"rows")
    assert work.complete
    work.create()
    assert not work.complete
    assert not Path(work.stage(7)).exists()
    assert sorted(p.name for p in work.root.iterdir()) == ["progress", "receipts", "stage"]
    work.remove()
    work.remove()
    assert not list(tmp_path.iterdir())


def test_a_missing_receipt_names_the_split(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.create()
    work.write_receipt(Receipt(0, 5))
    assert [r.rows_in for r in work.receipts(1)] == [5]
    with pytest.raises(UntrustedRunError, match="split 1 of 2 left no receipt"):
        work.receipts(2)


def test_it_is_complete_only_when_every_file_is_there(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.create()
    with pytest.raises(OSError, match=r"lost.parquet can't be written: No such file"):
        work.mark_complete([tmp_path / "lost.parquet"])
    assert not work.complete


def test_progress_is_the_sum_over_splits_and_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.4, 10.6, 11.0, 20.0, 20.1])
    monkeypatch.setattr(work_folder.time, "monotonic", lambda: next(clock))
    work = WorkFolder(tmp_path)
    assert work.progress() == Counter()
    work.create()
    first = ProgressFile(work, 0)
    first.update(rows=10, rejected=1)
    first.update(rows=10)
    assert work.progress() == {"rows": 10, "rejected": 1}
    first.update(rows=10)
    assert work.progress() == {"rows": 30, "rejected": 1}
    first.update(rows=1, done=True)
    ProgressFile(work, 1).update(rows=5)
    ProgressFile(work, 0, kind="finish").update(finished=31)
    assert work.progress() == {"rows": 36, "rejected": 1, "finished": 31}
    assert json.loads((work.root / "progress" / "000000-read.json").read_bytes()) == {
        "rows": 31,
        "rejected": 1,
    }


def test_a_repeated_split_is_not_counted_twice(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.create()
    for _ in range(2):
        ProgressFile(work, 3).update(rows=10, done=True)
    assert work.progress() == {"rows": 10}
