"""The page about verify names options, tables and settings that there are."""

import re
from pathlib import Path

from typer.main import get_command

from headrace.pipelines.commands.verify import app
from headrace.pipelines.exits import DONE, INVALID, UNTRUSTED, WRONG_USE
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.verify.disturb import DELAYED_SHARE, REPEATED_SHARE
from headrace.pipelines.verify.known_tables import NIGHTLY, PLACE
from headrace.pipelines.verify.stored_tables import MEMORY_LIMIT

PAGE = (Path(__file__).parents[3] / "docs" / "verify.md").read_text("utf-8")


def test_every_option_of_the_page_is_one() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {
        option for command in commands.values() for parameter in command.params for option in parameter.opts
    }
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    assert named <= known, named - known
    assert {
        "--key",
        "--ignore",
        "--tolerance",
        "--table",
        "--report",
        "--work",
        "--seed",
        "--runner",
    } <= named


def test_known_tables_settings_and_numbers() -> None:
    for name in NIGHTLY:
        assert f"`{name}`" in PAGE
    for column in PLACE:
        assert f"`{column}`" in PAGE
    for setting in ("watermark_delay_seconds", "allowed_lateness_seconds", "accumulation"):
        assert setting in PAGE and hasattr(StreamConfig(), setting)
    assert [int(row) for row in re.findall(r"^\| (\d) \|", PAGE, re.M)] == [
        DONE,
        INVALID,
        WRONG_USE,
        UNTRUSTED,
    ]
    assert (DELAYED_SHARE, REPEATED_SHARE, MEMORY_LIMIT) == (0.25, 0.1, "1GiB"), "the page says so in words"


def test_keys_of_nightly_tables_are_columns_of_them() -> None:
    assert list(NIGHTLY) == list(TABLES)
    for name, key in NIGHTLY.items():
        assert set(key) <= set(TABLES[name].schema.names), name
