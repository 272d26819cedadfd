"""The control run in small: with the protection a restored checkpoint leaves no trace, without it rows are there twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import BREAK, BROKEN
from tests.chaos.local_crash import RECORDS

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def _crash(folder: Path, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.local_crash", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_restored_checkpoint_leaves_no_trace(tmp_path: Path) -> None:
    found = _crash(tmp_path)
    assert found["read"] == RECORDS
    assert found["rows"] == found["records"] > 0.9 * RECORDS
    assert found["balanced"]


def test_without_the_protection_rows_are_doubled_and_the_ledger_does_not_see_it(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (str(BROKEN), os.environ.get("PYTHONPATH"))))
    found = _crash(tmp_path, **{BREAK: "commit_at_once", "PYTHONPATH": path})
    assert found["rows"] > found["records"]
    assert found["balanced"]
