from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.connectors.ledger import Ledger
from headrace.connectors.write_metrics import write_metrics
from headrace.pipelines.results import TOP, load_result, save_counts
from headrace.schemas.columns import MONEY


@pytest.fixture
def out(tmp_path: Path) -> Path:
    money = pa.array([Decimal("1.50"), Decimal("2.25"), None, Decimal("-1")], MONEY)
    write_metrics(
        tmp_path / "metrics",
        "events_per_minute",
        pa.table({"event_type": ["b", "a", "b", None], "events": [1, 4, 3, 9]}),
    )
    write_metrics(
        tmp_path / "metrics",
        "revenue_per_minute",
        pa.table({"currency": ["EUR", "EUR", "USD", None], "revenue": money}),
    )
    Ledger(20, 17, {"decode": {"truncated_input": 1, "broken_block": 2}}).write(tmp_path / "ledger.json")
    save_counts(tmp_path, {"mask.masked_cells": 5})
    return tmp_path


def test_a_finished_output_is_read_back(out: Path) -> None:
    found = load_result(out)
    assert found.ledger.accepted == 17
    assert found.counts == {"mask.masked_cells": 5}
    assert found.top_event_types == [("(none)", 9), ("a", 4), ("b", 4)]
    assert found.revenue == [("EUR", Decimal("3.75")), ("(none)", Decimal(-1))]
    assert [w.split(" could")[0] for w in found.warnings] == ["1 inputs or blocks", "2 inputs or blocks"]
    assert "fetch these files again" in found.warnings[0]


def test_only_the_most_frequent_types_are_shown(out: Path) -> None:
    many = pa.table({"event_type": [f"t{i:02d}" for i in range(30)], "events": list(range(30))})
    write_metrics(out / "metrics", "events_per_minute", many)
    assert load_result(out).top_event_types == [(f"t{i}", i) for i in range(29, 29 - TOP, -1)]


def test_a_sound_input_gives_no_warning(out: Path) -> None:
    Ledger(1, 0, {"decode": {"malformed_json": 1}}).write(out / "ledger.json")
    save_counts(out, {})
    found = load_result(out)
    assert (found.warnings, found.counts) == ([], {})
