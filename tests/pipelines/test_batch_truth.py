"""The batch pipeline against the simulator's truth, and its accepted rows against a row-wise oracle."""

import ipaddress
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from headrace.schemas.columns import EVENT_SCHEMA
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.pipelines.runs import ledger, metric, rows, run, table

FAMILIES = ("envelope", "financial", "behaviour", "commerce", "interaction", "clickstream")
SCHEMAS = {
    name: json.loads((files("headrace.schemas") / "families" / name / "1.0.0.json").read_bytes())
    for name in FAMILIES
}


def classes_of(found: dict[str, Any]) -> dict[str, int]:
    """Returns the ledger in the simulator's terms."""
    rejected = {stage: Counter(reasons) for stage, reasons in found["rejected"].items()}
    decode, time, dedupe = (rejected.pop(stage, Counter()) for stage in ("decode", "time", "dedupe"))
    classes = {
        "accepted": found["accepted"],
        "malformed": decode.pop("malformed_json", 0)
        + decode.pop("invalid_utf8", 0)
        + decode.pop("malformed_line", 0),
        "unknown_schema": decode.pop("unknown_schema", 0),
        "invalid": sum(rejected.pop("validate", Counter()).values()),
        "stale": time.pop("stale", 0),
        "future": time.pop("future", 0),
        "duplicate": dedupe.pop("duplicate", 0),
        "conflict": dedupe.pop("duplicate_conflict", 0),
    }
    assert not any((decode, time, dedupe, rejected))
    return classes


@pytest.mark.integration
@pytest.mark.parametrize(("seed", "family", "split_bytes"), [(3, None, 1 << 18), (4, "weblog", 1 << 16)])
def test_every_verdict_and_measure_is_the_truth(
    seed: int, family: str | None, split_bytes: int, tmp_path: Path, key: Path, warm: None
) -> None:
    simulation = (
        simulate(3000, seed, fault_rate=0.5)
        if family is None
        else simulate(2500, seed, fault_rate=0.4, families=[family])
    )
    source = tmp_path / ("events.jsonl" if family is None else "access.log")
    source.write_bytes(b"".join(simulation))
    truth = simulation.summary.to_dict()
    assert source.stat().st_size > 4 * split_bytes

    result = run(source, tmp_path / "out", key, now=simulation.summary.now, split_bytes=split_bytes)

    found = ledger(tmp_path / "out")
    assert found["balanced"] is True
    assert found["rows_in"] == truth["events"]
    assert classes_of(found) == truth["classes"]
    events = table(tmp_path / "out", "events")
    assert Counter(events["event_type"].to_pylist()) == truth["event_types"]
    assert pc.count_distinct(events["event_id"]).as_py() == events.num_rows == truth["classes"]["accepted"]
    revenue = events.group_by("currency").aggregate([("revenue", "sum")]).to_pylist()
    expected = {currency: Decimal(amount) for currency, amount in truth["revenue"].items()}
    assert {r["currency"]: r["revenue_sum"] for r in revenue if r["revenue_sum"] is not None} == expected
    assert dict(result.revenue) == expected
    per_minute = metric(tmp_path / "out", "events_per_minute")
    types = per_minute.group_by("event_type").aggregate([("events", "sum")]).to_pylist()
    assert {r["event_type"]: r["events_sum"] for r in types} == truth["event_types"]
    assert result.top_event_types[0] == max(truth["event_types"].items(), key=lambda item: item[1])


@pytest.mark.integration
def test_business_rules_take_their_rows_from_the_accepted_ones(tmp_path: Path, key: Path, warm: None) -> None:
    simulation = simulate(600, 5, fault_rate=0.2)
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"".join(simulation))
    rules = {"ticks": "event_type = 'tick'"}
    low_value = {
        "clicks": "event_type = 'click'",
        "bots": "is_bot AND event_category = 'browse'",
    }
    run(source, tmp_path / "out", key, now=simulation.summary.now, rules=rules, filter=low_value)
    found = ledger(tmp_path / "out")
    types = simulation.summary.event_types
    assert found["rejected"]["rules"] == {"ticks": types["tick"]}
    filtered = found["rejected"]["filter"]
    assert filtered["clicks"] == types["click"] > 0
    assert filtered["bots"] > 0
    assert found["accepted"] == sum(types.values()) - types["tick"] - sum(filtered.values())
    assert found["balanced"] is True
    lost = [row for row in rows(tmp_path / "out", "quarantine") if row["stage"] == "rules"]
    assert {row["event_type"] for row in lost} == {"tick"}
    assert all(row["price"] is not None and row["document"] is None for row in lost)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Oracle:
    """Maps one document at a time onto the event columns, by nothing but the schema's ``x-`` keywords."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def row(self, document: dict[str, Any]) -> dict[str, Any]:
        family = next(n for n in FAMILIES if any(document.keys() >= set(k) for k in SCHEMAS[n]["x-detect"]))
        columns: dict[str, Any] = dict.fromkeys(EVENT_SCHEMA.names)
        columns["schema"] = f"{family}:1.0.0"
        members: dict[str, dict[str, Any]] = {}
        for column, value in self._walk(SCHEMAS[family], document, ""):
            name, _, member = column.partition("/")
            if member:
                members.setdefault(name, {})[member.replace("~1", "/").replace("~0", "~")] = value
            else:
                columns[name] = value
        for name, values in members.items():
            columns[name] = canonical({**json.loads(columns[name] or "{}"), **values})
        return columns

    def _walk(self, node: dict[str, Any], value: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
        for name, item in value.items():
            child = node["properties"].get(name)
            if child is not None and "x-column" in child:
                if item is not None:
                    yield child["x-column"], self._cell(child, item)
            elif child is not None and "properties" in child and isinstance(item, dict):
                yield from self._walk(child, item, f"{at}/{name}")
            elif "x-rest" in node:
                yield f"{node['x-rest']}/{name.replace('~', '~0').replace('/', '~1')}", item
            else:
                pointer = f"{at}/{name}"
                yield "extra/" + pointer.replace("~", "~0").replace("/", "~1"), item

    def _cell(self, child: dict[str, Any], item: Any) -> Any:
        kind, column = child.get("x-pii"), child["x-column"]
        if kind == "token":
            return self._key.token(item)
        if kind == "ip":
            address = ipaddress.ip_address(item)
            network = ipaddress.ip_network((item, 24 if address.version == 4 else 48), strict=False)
            return str(network.network_address)
        if "/" in column:
            return item
        if column in ("attributes", "properties", "custom_data"):
            return canonical(item)
        if column == "event_time":
            return datetime.fromisoformat(item)
        return Decimal(str(item)) if child.get("x-decimal") else item


@pytest.mark.integration
def test_accepted_rows_are_what_a_row_wise_reading_of_the_schemas_gives(
    tmp_path: Path, key: Path, warm: None
) -> None:
    simulation = simulate(700, 21, fault_rate=0.3)
    data = b"".join(simulation)
    source = tmp_path / "events.jsonl"
    source.write_bytes(data)
    run(source, tmp_path / "out", key, now=simulation.summary.now, split_bytes=1 << 17)

    oracle = Oracle(Key(key))
    documents = data.splitlines()
    found = table(tmp_path / "out", "events").to_pylist()
    assert len(found) == simulation.summary.classes["accepted"]
    compared: Counter[str] = Counter()
    for row in found:
        text = documents[row["origin_position"] - 1].decode()
        expected = oracle.row(json.loads(text)) | {
            "event_date": row["event_time"].date(),
            "ingest_time": simulation.summary.now,
            "origin": "events.jsonl",
            "origin_position": row["origin_position"],
            "id_generated": "event_id" not in text,
        }
        if expected["id_generated"]:
            assert row["event_id"][14] == "8"
            expected["event_id"] = row["event_id"]
        sensitive = "@" in text or "%40" in text or "[card]" in json.dumps(row, default=str)
        for name, value in expected.items():
            if name in ("device_type", "country") and value is None:
                continue  # filled by enrichment
            if sensitive and name in ("page_url", "referrer", "query", "properties", "custom_data", "extra"):
                continue
            assert row[name] == value, (name, row["origin_position"])
            compared[name] += value is not None
    never = {name for name in EVENT_SCHEMA.names if not compared[name]}
    assert never == {"http_method", "http_status", "response_bytes"}
