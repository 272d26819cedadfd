"""The page about backfills says what the code declares."""

from pathlib import Path

from headrace.connectors.archive_files import DATE_KEYS
from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.settings import reference

PAGE = (Path(__file__).parents[3] / "docs" / "backfill.md").read_text("utf-8")


def test_the_page_has_every_setting() -> None:
    assert reference(BackfillConfig) in PAGE, "paste settings.reference(BackfillConfig) into docs/backfill.md"


def test_the_page_has_every_key_of_a_folder() -> None:
    missing = [key for key in DATE_KEYS if f"`{key}=" not in PAGE]
    assert not missing
