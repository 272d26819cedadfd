from pathlib import Path

import pytest

from headrace.pipelines.nightly.leftovers import remove_leftovers
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.warehouse import DayManifest, Warehouse, open_warehouse
from headrace.schemas.errors import ConfigError
from tests.pipelines.nightly.lakes import FIRST, SECOND, THIRD

GARBAGE = (
    ".warehouse.json.17-0123abcd.tmp",
    "_runs/.2026-01-05.json.17-0123abcd.tmp",
    "cube_geo/_delta_log/00000000000000000003.json#1",
    f"_work/{FIRST}/stage/000000.arrow",
    f"_work/{THIRD}/receipts/.split-000000.json.17-0123abcd.tmp",
)
KEPT = (
    "warehouse.json",
    "_lock",
    "_runs/2026-01-05.json",
    "_runs/2026-01-06.json",
    "cube_geo/_delta_log/00000000000000000002.json",
    "cube_geo/date=2026-01-05/part-a.parquet",
    f"_work/{SECOND}/tables/cube_geo/date=2026-01-06/part-b.parquet",
)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """FIRST is done, SECOND is being committed, THIRD has only begun."""
    out = tmp_path / "out"
    warehouse = open_warehouse(NightlyConfig(lake="lake", output=str(out)), "id")
    for day, state in ((FIRST, "done"), (SECOND, "written")):
        warehouse.save(DayManifest(day.isoformat(), "f", 1, "i", {}, 0, 0, state=state))
    for name in (*GARBAGE, *KEPT):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    return warehouse


def remaining(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_what_nobody_needs_is_removed_and_the_rest_stays(warehouse: Warehouse) -> None:
    remove_leftovers(warehouse)
    assert remaining(warehouse.root) == set(KEPT)
    remove_leftovers(warehouse)
    assert remaining(warehouse.root) == set(KEPT)


def test_the_folder_of_all_work_goes_with_the_last_of_it(warehouse: Warehouse) -> None:
    manifest = warehouse.manifest(SECOND)
    assert manifest is not None
    manifest.state = "done"
    warehouse.save(manifest)
    remove_leftovers(warehouse)
    assert not (warehouse.root / "_work").exists()


def test_work_of_a_damaged_manifest_is_not_thrown_away(warehouse: Warehouse) -> None:
    (warehouse.root / "_runs" / f"{SECOND}.json").write_text("{")
    with pytest.raises(ConfigError, match=r"2026-01-06\.json is damaged"):
        remove_leftovers(warehouse)
    assert warehouse.work(SECOND).exists()
