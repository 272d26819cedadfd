"""What the page about the quarantine says is what the code does."""

import re
from pathlib import Path

from headrace.connectors.read_quarantine import compile_where
from headrace.pipelines.quarantine import changes, groups, producers
from headrace.pipelines.quarantine.page import TITLES

PAGE = (Path(__file__).parents[3] / "docs" / "quarantine.md").read_text("utf-8")


def test_every_expression_of_the_table_is_one() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(.+ .+)` \|$", PAGE, re.M)
    assert len(rows) == 5
    for expression in rows:
        assert compile_where(expression).columns


def test_every_pattern_and_bound_is_told() -> None:
    for title in TITLES.values():
        assert f"| {title} |" in PAGE
    assert f"at least {changes.NEW_ROWS} rows" in PAGE and changes.CHANCE == 1e-9
    assert f"{changes.EVENTS_BEFORE} or more events before" in PAGE
    assert (
        f"bins with {changes.BURST_ROWS} rows or more" in PAGE
        and changes.BURST_FACTOR == 3
        and changes.DEVIATIONS == 6
    )
    assert (
        f"{producers.MOST_OF_ROWS:.0%}".replace("%", " %") in PAGE
        and f"{producers.LEAST_ROWS} or more rows" in PAGE
    )
    assert f"{producers.FEW_OF_EVENTS:.0%}".replace("%", " %") in PAGE
    assert f"The {groups.MOST} largest groups" in PAGE
