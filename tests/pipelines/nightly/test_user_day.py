"""The kernels: the order of rows and how they are cut do not matter; known first dates; the stage's shards."""

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from headrace.pipelines.nightly.cells import (
    cube_geo,
    geo_cells,
    product_cells,
    product_daily,
    revenue_columns,
)
from headrace.pipelines.nightly.local_days import local_day
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.read_day_fn import stage_schema
from headrace.pipelines.nightly.shard_files import ShardWriter, read_pieces, shard_of
from headrace.pipelines.nightly.user_day import UserDay, user_day
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import as_type
from tests.pipelines.nightly.lakes import random_events

DAY = local_day(date(2026, 1, 5), ZoneInfo("UTC"))
FUNNELS = {name: funnel.definition() for name, funnel in NightlyConfig().funnels.items()}
SCHEMA = stage_schema(ENRICHED_SCHEMA, FUNNELS.values())


def batch(events: list[dict[str, object]]) -> pa.RecordBatch:
    arrays = []
    for field in SCHEMA:
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        arrays.append(as_type(pa.array([e.get(field.name) for e in events], plain), field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def followed(events: list[dict[str, object]], known: list[tuple[int, pa.Array]] | None = None) -> UserDay:
    return user_day(batch(events), DAY, timedelta(minutes=30), FUNNELS, known or [])


@pytest.fixture
def events() -> list[dict[str, object]]:
    """Events of users, from half an hour before the day to its end."""
    found = random_events(400, 5, DAY.start - timedelta(minutes=30), 24.5, users=9)
    return [e for e in found if e["user_id"] is not None]


def test_the_order_of_rows_does_not_matter(events: list[dict[str, object]]) -> None:
    one = followed(events)
    random.Random(1).shuffle(events)
    two = followed(events)
    assert one.events == two.events == sum(e["event_time"] >= DAY.start for e in events)  # type: ignore[operator]
    for name, rows in one.rows.items():
        assert rows.to_pylist() == two.rows[name].to_pylist(), name
    assert {n: o.to_pylist() for n, o in one.outcomes.items()} == {
        n: o.to_pylist() for n, o in two.outcomes.items()
    }


def test_the_earliest_known_date_is_the_first(events: list[dict[str, object]]) -> None:
    known = [(20_000, pa.array(["user-1", "of another shard"])), (19_000, pa.array(["user-1", "user-2"]))]
    found = followed(events, known)
    new = set(found.rows["user_first_seen"].column("user_id").to_pylist())
    active = set(found.rows["user_daily_metrics"].column("user_id").to_pylist())
    assert {"user-1", "user-2"} <= active
    assert new == active - {"user-1", "user-2"}
    cohorts = found.cells["cohorts"].group_by("cohort").aggregate([("users", "sum")]).to_pylist()
    assert {row["cohort"]: row["users_sum"] for row in cohorts} == {19_000: 2, 20_458: len(new)}


def test_a_user_of_the_gap_alone_was_not_there() -> None:
    before = random_events(20, 5, DAY.start - timedelta(minutes=30), 0.5, users=2)
    found = followed([e for e in before if e["user_id"] and e["event_time"] < DAY.start])
    assert found.events == 0
    assert [rows.num_rows for rows in found.rows.values()] == [0, 0, 0]


def test_cells_of_parts_add_up_to_those_of_the_whole() -> None:
    found = random_events(300, 6, datetime(2026, 1, 5, tzinfo=UTC), 24)
    for cells, table in ((geo_cells, cube_geo), (product_cells, product_daily)):
        parts = [cells(batch(found[i : i + 37])) for i in range(0, len(found), 37)]
        assert table(parts).to_pylist() == table([cells(batch(found))]).to_pylist()
        assert table(parts[::-1]).to_pylist() == table(parts).to_pylist()


def test_revenue_that_is_too_large_is_an_error() -> None:
    amounts = pa.array(["9" * 29] * 2).cast(pa.decimal128(38, 9))
    with pytest.raises(OverflowError, match="a test has more than 38 digits"):
        revenue_columns(pa.array([0, 0]).to_numpy(), pa.array(["EUR"] * 2), amounts, 1, "a test")


def test_the_stage_gives_back_every_row_in_its_users_shard(
    tmp_path: Path, events: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.pipelines.nightly.shard_files.FLUSH_ROWS", 100)
    writer = ShardWriter(tmp_path / "stage.arrow", 4)
    for start in range(0, len(events), 30):
        writer.write(batch(events[start : start + 30]))
    found = []
    for shard, reference in writer.close():
        for piece in read_pieces([reference]):
            assert set(shard_of(piece.column("user_id"), 4).tolist()) == {shard}
            found += piece.to_pylist()
    key = "event_id"
    assert sorted(found, key=lambda e: e[key]) == sorted(batch(events).to_pylist(), key=lambda e: e[key])


def test_a_funnel_over_a_column_that_the_lake_lacks_is_refused() -> None:
    config = NightlyConfig(funnels={"f": {"steps": {"a": {"contry": "DE"}}}})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="no column 'contry'"):
        stage_schema(ENRICHED_SCHEMA, [config.funnels["f"].definition()])
