"""What runs that were killed left in a warehouse and nobody needs any more."""

import os
import re
import shutil
from datetime import date
from pathlib import Path

from headrace.connectors.atomic_file import naming, remove_temporaries
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.pipelines.nightly.warehouse import FILE, RUNS, WORK, Warehouse

_HALF_COMMIT = re.compile(r"\d{20}\.json#\d+")
"""What a Delta commit is called before it has its number: readers of the log pass it over."""


def remove_leftovers(warehouse: Warehouse) -> None:
    """Removes temporaries, commits that were never made, and the work of dates that are not being committed.

    The work of dates whose manifest is in state written stays, as their next run goes on with it. Tables are not touched; a date's
    old files are deleted when the date is committed. Call it under the warehouse's lock, before anything is written.

    Raises:
        OutputError: the disk refused.
        ConfigError: the manifest of a date that has work is damaged.
    """
    with naming(warehouse.root):
        for path in warehouse.root.glob(f".{FILE}.*.tmp"):
            path.unlink()
        remove_temporaries(warehouse.root / RUNS)
        for table in TABLES:
            for path in _listed(warehouse.path(table) / "_delta_log"):
                if _HALF_COMMIT.fullmatch(path.name):
                    path.unlink()
    for work in (warehouse.root / WORK).glob("????-??-??"):
        manifest = warehouse.manifest(date.fromisoformat(work.name))
        if manifest is None or manifest.state != "written":
            with naming(work):
                shutil.rmtree(work)
    remove_work_folder(warehouse)


def remove_work_folder(warehouse: Warehouse) -> None:
    """Removes the folder of all dates' work if there is none."""
    work = warehouse.root / WORK
    if work.is_dir() and not _listed(work):
        with naming(work):
            work.rmdir()


def _listed(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder))] if folder.is_dir() else []
