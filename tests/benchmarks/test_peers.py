"""The peers do the whole job: their outputs against events whose fate is known by construction."""

import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fates import CARD, EMAIL, NOW, PHONE, mixed

from benchmarks import peer_beam, peer_duckdb
from benchmarks.outcome import read_outcome

pytestmark = pytest.mark.integration

FATES = mixed()
PEERS = {
    "beam-json": lambda source, output: peer_beam.run("json", source, output, NOW),
    "beam-orjson": lambda source, output: peer_beam.run("orjson", source, output, NOW),
    "duckdb": lambda source, output: peer_duckdb.run(source, output, NOW),
}


@pytest.fixture(scope="module", params=PEERS)
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of each peer, run once on the same fifty events."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "events.jsonl"
    source.write_bytes(b"\n".join(FATES.lines) + b"\n")
    PEERS[request.param](str(source), folder / "out")
    return folder / "out"


def rows(output: Path, table: str) -> list[dict]:
    files = sorted((output / table).rglob("*.parquet"))
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]


def test_every_event_meets_its_fate(output: Path) -> None:
    found = read_outcome(output)
    expected = {("rule" if fate == "filtered" else fate): n for fate, n in FATES.rejected.items()}
    assert found.accepted == FATES.accepted
    assert found.rejected == expected
    assert found.accepted + sum(found.rejected.values()) == len(FATES.lines)


def test_revenue_is_exact_and_refunds_are_subtracted(output: Path) -> None:
    assert (
        {c: Decimal(text) for c, text in read_outcome(output).revenue.items()}
        == FATES.revenue
        == {"EUR": Decimal("35.28")}
    )


def test_lake_is_partitioned_by_date_and_ids_are_unique(output: Path) -> None:
    dates = {
        path.parent.name
        for path in (output / "events").rglob("*.parquet")
        if pq.ParquetFile(path).metadata.num_rows
    }
    ids = [row["event_id"] for row in rows(output, "events")]
    assert dates == {"event_date=2026-11-21"}
    assert len(set(ids)) == len(ids) == FATES.accepted
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", i) for i in ids)


def test_a_repeated_event_without_id_is_two_events(output: Path) -> None:
    urls = [row["page_url"] for row in rows(output, "events") if row["schema"] == "clickstream:1.0.0"]
    assert sorted(urls.count(url) for url in set(urls)) == [1, 1, 1, 1, 1, 1, 2]


def test_nothing_unmasked_is_left_on_disk(output: Path) -> None:
    texts = [str(row) for table in ("events", "quarantine") for row in rows(output, table)]
    for secret in (EMAIL, CARD, "8.8.8.8", "'u1'", "'u3'"):
        assert not [text for text in texts if secret in text]
    searches = [row for row in rows(output, "events") if row["event_type"] == "search"]
    assert {row["ip_address"] for row in searches} == {"8.8.8.0"}
    assert {row["query"] for row in searches} == {"pay [card]"}
    assert {row["properties"] for row in searches} == {'{"shade":"red"}'}


def test_enrichment(output: Path) -> None:
    lake = rows(output, "events")
    robots = [row for row in lake if row["schema"] == "clickstream:1.0.0"]
    people = [row for row in lake if row["user_agent"] == PHONE]
    assert {row["is_bot"] for row in robots} == {True}
    assert {(row["is_bot"], row["device_type"], row["os"]) for row in people} == {(False, "mobile", "iOS")}
    assert {row["event_category"] for row in people} == {"discovery"}


def test_metrics_count_every_accepted_event(output: Path) -> None:
    metrics = rows(output, "metrics")
    assert sum(row["events"] for row in metrics) == FATES.accepted
    assert sum(row["revenue"] or 0 for row in metrics) == Decimal("35.28")
    assert all(row["window_start"].second == 0 for row in metrics)
    assert {row["event_type"] for row in metrics if row["currency"] == "EUR"} == {
        "purchase",
        "refund",
        "product_view",
    }


def test_country_from_the_address_where_none_is_stated(output: Path) -> None:
    countries = {row["schema"]: row["country"] for row in rows(output, "events")}
    derived = None if "duckdb" in str(output) else "US"
    assert (countries["envelope:1.0.0"], countries["clickstream:1.0.0"]) == ("DE", derived)


def test_beam_lake_has_the_canonical_columns(output: Path) -> None:
    if "beam" not in str(output):
        assert {"event_id", "revenue"} <= set(rows(output, "events")[0])
        return
    path = next((output / "events").rglob("*.parquet"))
    schema = pq.read_schema(path)
    assert schema.names == peer_beam.LAKE_SCHEMA.names
    assert schema.field("revenue").type == pa.decimal128(38, 9)


def test_the_sql_script_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    peer_duckdb.main(
        ["--input", "in.jsonl", "--output", "out", "--now", NOW.isoformat(), "--threads", "2", "--print-sql"]
    )
    told = capsys.readouterr().out
    assert (
        told.startswith("set threads = 2;")
        and "read_csv('in.jsonl'" in told
        and "partition_by (event_date)" in told
    )
