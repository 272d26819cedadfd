"""The page about the nightly tables says what the code declares."""

from pathlib import Path

from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.nightly_tables import SUMMARY_TABLES, TABLES, USER_TABLES, reference
from headrace.pipelines.settings import reference as settings

PAGE = (Path(__file__).parents[3] / "docs" / "nightly.md").read_text("utf-8")


def test_the_page_has_every_table_and_column() -> None:
    assert reference() in PAGE, (
        "paste headrace.pipelines.nightly.nightly_tables.reference() into docs/nightly.md"
    )


def test_the_page_has_every_setting() -> None:
    assert settings(NightlyConfig) in PAGE, "paste settings.reference(NightlyConfig) into docs/nightly.md"


def test_every_column_is_described_and_numbers_have_a_unit() -> None:
    for name, table in TABLES.items():
        for column in table.columns:
            assert column.about, (name, column.name)
            number = str(column.type) in ("int64", "double") or "decimal" in str(column.type)
            assert column.unit or not number, (name, column.name)


def test_tables_are_of_users_or_summed_up() -> None:
    assert sorted([*USER_TABLES, *SUMMARY_TABLES]) == sorted(TABLES)
