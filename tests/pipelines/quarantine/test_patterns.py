"""Every pattern that is planted is found, with the rows behind it; where none is, none is found."""

from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from headrace.pipelines.quarantine.documents import Unsealer
from headrace.pipelines.quarantine.patterns import (
    BURST,
    CHANGED_TYPE,
    CONCENTRATED,
    JUMPED,
    NEW,
    Pattern,
)
from headrace.pipelines.quarantine.summary import summarise
from headrace.schemas.failures import Failure
from headrace.transforms.keys import Key
from tests.pipelines.quarantine.planted import (
    START,
    Row,
    event,
    reject,
    sealed,
    selected,
    traffic,
    write_output,
)

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)
ENUM = [Failure("enum", "/event_type", 'expected one of "click", "search"')]
PRICE = [Failure("type", "/properties/price", "expected number, found string")]


def rows_between(first: float, last: float, count: int, seed: int = 9, **changes: Any) -> list[Row]:
    rng = Random(seed)
    step = (last - first) / count
    return [event(rng, START + HOUR * (first + step * n), 100_000 + n, **changes) for n in range(count)]


def found_in(out: Path, **options: Any) -> list[Pattern]:
    found = summarise(out, **options)
    for pattern in found.patterns:
        assert selected(out, pattern.where).num_rows == pattern.rows > 0, pattern.where
    return found.patterns


def as_file(rows: list[Row]) -> list[Row]:
    """Returns the rows as a batch reads them: one reference time, lines of one file."""
    return [
        {**row, "ingest_time": START + 24 * HOUR, "origin": "a.jsonl", "origin_position": n + 1}
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize("plain", [False, True], ids=["delta", "plain"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_even_rejections_are_no_pattern(tmp_path: Path, seed: int, plain: bool) -> None:
    assert found_in(write_output(tmp_path, *traffic(seed), plain=plain)) == []


def test_more_traffic_is_no_pattern(tmp_path: Path) -> None:
    lake, rejects = traffic(4)
    more, worse = traffic(5, events=20_000)
    inside = [r for r in more if START + 10 * HOUR <= r["ingest_time"] < START + 12 * HOUR]
    spike = [r for r in worse if START + 10 * HOUR <= r["ingest_time"] < START + 12 * HOUR]
    out = write_output(tmp_path, [*lake, *inside * 4], [*rejects, *spike * 4])
    assert [p for p in found_in(out) if p.kind != CONCENTRATED] == []


def test_a_new_reason_is_dated_and_counted(tmp_path: Path) -> None:
    lake, rejects = traffic()
    new = [
        reject({**r, "schema": "commerce:1.0.0"}, "validate", "enum", ENUM) for r in rows_between(16, 24, 40)
    ]
    (pattern,) = found_in(write_output(tmp_path, lake, rejects + new))
    assert (pattern.kind, pattern.rows, pattern.group.pointer) == (NEW, 40, "/event_type")
    assert pattern.first == START + 16 * HOUR
    assert (
        "enum at /event_type in commerce:1.0.0 is new since 2026-01-05 16:00:00 UTC: 40 rows"
        in pattern.sentence
    )
    assert "the last one" not in pattern.sentence
    before = sum(
        r.get("schema") == "commerce:1.0.0" and r["ingest_time"] < START + 16 * HOUR for r in lake + rejects
    )
    assert f"none among the {before:,} events of commerce:1.0.0 before" in pattern.sentence


def test_a_new_reason_that_has_ended_says_so(tmp_path: Path) -> None:
    lake, rejects = traffic()
    new = [reject(r, "rules", "price_not_positive") for r in rows_between(8, 14, 60)]
    (pattern,) = found_in(write_output(tmp_path, lake, rejects + new))
    assert pattern.kind == NEW and "60 rows, the last one at 2026-01-05 13:54:00 UTC" in pattern.sentence


@pytest.mark.parametrize("unseal", [False, True])
def test_a_deploy_that_came_with_it_is_named(tmp_path: Path, key: Path, unseal: bool) -> None:
    lake, rejects = traffic()
    of_it = rows_between(15, 24, 80, app_version="5.0.0", schema="behaviour:1.0.0")
    lake += of_it + rows_between(0, 15, 300, app_version="4.7.0", schema="behaviour:1.0.0")
    wrong = [reject(r, "validate", "enum", ENUM) for r in rows_between(15, 24, 50, schema="behaviour:1.0.0")]
    document = orjson.dumps({"event_type": "hover", "context": {"app_version": "5.0.0"}})
    rejects += sealed(Key(key), wrong, [document] * 50)
    found = found_in(write_output(tmp_path, lake, rejects), unsealer=Unsealer(Key(key)) if unseal else None)
    new = next(p for p in found if p.kind == NEW)
    assert new.rows == 50
    if unseal:
        assert (
            "app_version 5.0.0 appears first at the same time, and all of these rows are of it"
            in new.sentence
        )
    else:
        assert "app_version 5.0.0 appears first at the same time (these rows were rejected" in new.sentence


@pytest.mark.parametrize("by_place", [False, True], ids=["stream", "file"])
def test_a_field_that_changed_its_type(tmp_path: Path, by_place: bool) -> None:
    lake, rejects = traffic(6)
    wrong = [
        reject({**r, "schema": "commerce:1.0.0"}, "validate", "type", PRICE) for r in rows_between(14, 24, 60)
    ]
    everything = sorted([*lake, *rejects, *wrong], key=lambda r: r["ingest_time"])
    if by_place:
        everything = as_file(everything)
    out = write_output(
        tmp_path, [r for r in everything if "stage" not in r], [r for r in everything if "stage" in r]
    )
    (pattern,) = found_in(out)
    assert (pattern.kind, pattern.rows) == (CHANGED_TYPE, 60)
    assert pattern.first is not None
    assert abs(pattern.first - (START + 14 * HOUR)) < timedelta(minutes=15)
    assert (
        "/properties/price in commerce:1.0.0 changed its type: string since 2026-01-05 1" in pattern.sentence
    )
    assert "where the schema has number: 60 rows" in pattern.sentence


def test_types_that_were_always_wrong_have_not_changed(tmp_path: Path) -> None:
    lake, rejects = traffic(7)
    wrong = [
        reject({**r, "schema": "commerce:1.0.0"}, "validate", "type", PRICE) for r in rows_between(0, 24, 80)
    ]
    assert found_in(write_output(tmp_path, lake, rejects + wrong)) == []


@pytest.mark.parametrize("by_place", [False, True], ids=["stream", "file"])
def test_a_burst(tmp_path: Path, by_place: bool) -> None:
    lake, rejects = traffic(8)
    burst = [reject(r, "dedupe", "duplicate") for r in rows_between(9, 10, 200)]
    everything = sorted([*lake, *rejects, *burst], key=lambda r: r["ingest_time"])
    if by_place:
        everything = as_file(everything)
    out = write_output(
        tmp_path, [r for r in everything if "stage" not in r], [r for r in everything if "stage" in r]
    )
    found = [p for p in found_in(out) if p.kind == BURST and p.group.kind == "reason"]
    found = found or [p for p in found_in(out) if p.kind == BURST]
    assert {p.kind for p in found_in(out)} == {BURST}
    assert sum(p.rows for p in found) >= 190
    assert all("dedupe: duplicate" in p.sentence and "a burst of" in p.sentence for p in found)
    if not by_place:
        assert "from 2026-01-05 09:00:00 UTC" in found[0].sentence


def test_a_share_that_jumped(tmp_path: Path) -> None:
    lake, rejects = traffic(3)
    cut = [Failure("malformed_json", "", "not JSON at column 9: unexpected end of data")]
    more = [reject(r, "decode", "malformed_json", cut) for r in rows_between(12, 24, 150)]
    (pattern,) = found_in(write_output(tmp_path, lake, rejects + more))
    assert (pattern.kind, pattern.group.reason) == (JUMPED, "malformed_json")
    assert pattern.rows >= 150 and pattern.first is not None
    assert abs(pattern.first - (START + 12 * HOUR)) < HOUR
    assert "from 1" in pattern.sentence or "from 0." in pattern.sentence


def test_what_is_new_explains_the_jump_of_its_reason(tmp_path: Path) -> None:
    lake, rejects = traffic(3)
    more = [reject(r, "validate", "type", PRICE, schema="commerce:1.0.0") for r in rows_between(12, 24, 150)]
    assert [p.kind for p in found_in(write_output(tmp_path, lake, rejects + more))] == [CHANGED_TYPE]


def test_one_producer_behind_a_reason(tmp_path: Path) -> None:
    lake, rejects = traffic(2)
    theirs = [
        reject(r, "time", "future")
        for r in rows_between(0, 24, 60, source="ios-app", app_version="4.8.1", device_type="mobile")
    ]
    found = found_in(write_output(tmp_path, lake, rejects + theirs))
    (pattern,) = found
    assert pattern.kind == CONCENTRATED
    assert set(pattern.values) == {("source", "ios-app"), ("app_version", "4.8.1")}
    assert pattern.rows == 60
    assert "time: future: 100% of the rows (60 of 60) have " in pattern.sentence
    share = sum(r["source"] == "ios-app" for r in lake) / len(lake)
    said = float(pattern.sentence.split("which has ")[1].split("%")[0])
    assert abs(said / 100 - share) < 0.03


def test_who_is_behind_almost_everything_is_behind_no_reason(tmp_path: Path) -> None:
    lake, rejects = traffic(2)
    lake = [{**r, "source": "web-sdk"} for r in lake]
    theirs = [
        reject(r, "time", "future") for r in rows_between(0, 24, 60, source="web-sdk", app_version=None)
    ]
    assert [
        p for p in found_in(write_output(tmp_path, lake, rejects + theirs)) if p.dimension == "source"
    ] == []


def test_a_schema_that_only_one_producer_sends_is_no_finding(tmp_path: Path) -> None:
    lake, rejects = traffic(2)
    own = rows_between(
        0, 24, 300, schema="financial:1.0.0", source="core-banking", app_version=None, device_type=None
    )
    theirs = [
        reject(r, "time", "future")
        for r in rows_between(
            0, 24, 60, schema="financial:1.0.0", source="core-banking", app_version=None, device_type=None
        )
    ]
    assert found_in(write_output(tmp_path, lake + own, rejects + theirs)) == []


def test_a_selection_goes_into_what_can_be_pasted(tmp_path: Path) -> None:
    lake, rejects = traffic()
    new = [reject(r, "rules", "price_not_positive") for r in rows_between(12, 24, 60)]
    out = write_output(tmp_path, lake, rejects + new)
    (pattern,) = found_in(out, where="source = 'web-sdk' OR source IS NULL")
    assert pattern.rows == sum(r["source"] == "web-sdk" for r in new)
    assert pattern.where.startswith("(source = 'web-sdk' OR source IS NULL) AND stage = 'rules'")


def test_names_that_may_be_personal_are_not_told(tmp_path: Path) -> None:
    lake, rejects = traffic()
    odd = [Failure("additional_properties", "", 'unexpected properties: "ann@example.com"')]
    new = [reject(r, "validate", "additional_properties", odd) for r in rows_between(12, 24, 60)]
    found = found_in(write_output(tmp_path, lake, rejects + new))
    assert [p.kind for p in found] == [NEW]
    assert "ann@" not in found[0].sentence + found[0].where


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    lake, rejects = traffic(2)
    new = [reject(r, "rules", "odd") for r in rows_between(12, 24, 60, source="ios-app")]
    out = write_output(tmp_path, lake, rejects + new)
    assert found_in(out) == found_in(out) != []
