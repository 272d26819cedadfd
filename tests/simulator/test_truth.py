"""The simulator's truth against an independent row-wise oracle, for every verdict."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from typing import Any

import jsonschema_rs
import orjson
import pytest

from headrace.simulator.faults import CLASSES
from headrace.simulator.simulate import JSON_FAMILIES, simulate

FAMILIES = ("envelope", "financial", "behaviour", "commerce", "interaction", "clickstream", "weblog")
SCHEMAS = {
    name: json.loads((files("headrace.schemas") / "families" / name / "1.0.0.json").read_bytes())
    for name in FAMILIES
}
VALIDATORS = {
    name: jsonschema_rs.validator_for(schema, validate_formats=True) for name, schema in SCHEMAS.items()
}
LOG_LINE = re.compile(
    r'(\S+) (\S+) (\S+) \[([^\]]+)\] "([A-Z]+) (\S+) HTTP/1\.1" (\d{3}) (\d+|-) "([^"]*)" "([^"]*)"'
)


class Oracle:
    """Decode, validate, stale and future, dedupe: one line at a time."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.seen: dict[str, Any] = {}
        self.classes: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.revenue: Counter[str] = Counter()

    def __call__(self, line: bytes) -> str:
        verdict = self._verdict(line)
        self.classes[verdict] += 1
        return verdict

    def _verdict(self, line: bytes) -> str:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            return "malformed"
        family = next(
            (n for n in FAMILIES if any(event.keys() >= set(keys) for keys in SCHEMAS[n]["x-detect"])), None
        )
        if family is None:
            return "unknown_schema"
        head = event["metadata"] if family == "envelope" else event
        if str(head.get("version", "1.0.0")).split(".")[0] != "1":
            return "unknown_schema"
        if not VALIDATORS[family].is_valid(event):
            return "invalid"
        time = datetime.fromisoformat(head["timestamp"])
        if time < self.now - timedelta(hours=24):
            return "stale"
        if time > self.now + timedelta(minutes=5):
            return "future"
        event_id = head.get("event_id")
        if event_id is not None:
            if event_id in self.seen:
                return "duplicate" if self.seen[event_id] == event else "conflict"
            self.seen[event_id] = event
        self._measure(family, event)
        return "accepted"

    def _measure(self, family: str, event: dict[str, Any]) -> None:
        body = event["payload"] if family == "envelope" else event
        kind = body["record_type" if family == "financial" else "event_type"]
        self.types[kind] += 1
        if kind not in ("purchase", "refund"):
            return
        shop = body if family == "clickstream" else body["properties"]
        if family == "commerce":
            amount = Decimal(str(body["transaction"]["total_amount"]))
        elif family == "clickstream":
            amount = Decimal(str(shop["price"])) * shop["quantity"]
        else:
            amount = Decimal(str(shop["amount"]))
        self.revenue[shop["currency"]] += int(amount * 100) * (1 if kind == "purchase" else -1)


def check(oracle: Oracle, simulation: Any, data: bytes) -> None:
    assert data.endswith(b"\n")
    lines = data[:-1].split(b"\n")
    for line in lines:
        oracle(line)
    truth = simulation.summary.to_dict()
    assert truth["classes"] == {name: oracle.classes[name] for name in CLASSES}
    assert truth["events"] == len(lines) == sum(truth["families"].values())
    assert truth["event_types"] == dict(oracle.types)
    assert simulation.summary.revenue_cents == oracle.revenue


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_truth_is_what_a_row_wise_pipeline_decides(seed: int) -> None:
    simulation = simulate(5000, seed, fault_rate=0.5)
    data = b"".join(simulation)
    oracle = Oracle(simulation.summary.now)
    check(oracle, simulation, data)
    assert min(oracle.classes[name] for name in CLASSES) >= 20
    assert oracle.revenue["EUR"] > 0
    assert oracle.types["refund"] > 0


@pytest.mark.parametrize("family", JSON_FAMILIES)
def test_truth_holds_for_each_family_alone(family: str) -> None:
    simulation = simulate(1500, 5, families=[family], fault_rate=0.6)
    data = b"".join(simulation)
    check(Oracle(simulation.summary.now), simulation, data)
    assert set(simulation.summary.families) == {family, "none"}
    assert simulation.summary.faults["missing_field"] > 0


def test_every_kind_of_fault_is_injected() -> None:
    simulation = simulate(7000, 3, fault_rate=1.0)
    check(Oracle(simulation.summary.now), simulation, b"".join(simulation))
    assert set(simulation.summary.faults) == {
        *("truncated", "not_a_number", "invalid_utf8", "bad_escape", "byte_order_mark"),
        *("unknown_version", "unknown_family", "stale", "future", "duplicate", "conflict", "repeat", "copy_of_rejected"),
        *("pii_email", "pii_card", "unknown_field"),
        *("missing_field", "wrong_type", "bad_enum", "bad_value", "bad_uuid", "bad_timestamp", "negative_price", "extra_field"),
    }  # fmt: skip


def test_a_span_of_days_makes_early_events_stale_and_the_truth_says_so() -> None:
    simulation = simulate(4000, 4, span="3d", fault_rate=0.3)
    data = b"".join(simulation)
    oracle = Oracle(simulation.summary.now)
    check(oracle, simulation, data)
    assert oracle.classes["stale"] > 1500 < oracle.classes["accepted"] + oracle.classes["stale"]


def test_without_faults_every_line_is_accepted() -> None:
    simulation = simulate(5000, 6, fault_rate=0.0)
    data = b"".join(simulation)
    oracle = Oracle(simulation.summary.now)
    check(oracle, simulation, data)
    assert oracle.classes == {"accepted": 5000}
    assert not simulation.summary.faults


def test_weblog_truth() -> None:
    simulation = simulate(6000, 8, families=["weblog"], fault_rate=0.4)
    lines = b"".join(simulation).decode().splitlines()
    now = simulation.summary.now
    classes: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for line in lines:
        match = LOG_LINE.fullmatch(line)
        if match is None:
            classes["malformed"] += 1
            continue
        try:
            time = datetime.strptime(match[4], "%d/%b/%Y:%H:%M:%S %z")
        except ValueError:
            classes["invalid"] += 1
            continue
        status = int(match[7])
        if status < 100:
            classes["invalid"] += 1
        elif time < now - timedelta(hours=24):
            classes["stale"] += 1
        elif time > now + timedelta(minutes=5):
            classes["future"] += 1
        else:
            classes["accepted"] += 1
            asset = re.search(r"\.(css|js|svg|ico|webp)([?]|$)", match[6])
            view = "page_view" if match[5] == "GET" else "request"
            types["http_error" if status >= 400 else "asset" if asset else view] += 1
    truth = simulation.summary.to_dict()
    assert truth["classes"] == {name: classes[name] for name in CLASSES}
    assert truth["event_types"] == dict(types)
    assert min(classes[name] for name in ("accepted", "malformed", "invalid", "stale", "future")) > 50
    assert set(types) == {"page_view", "asset", "request", "http_error"}
    assert simulation.summary.faults["repeat"] > 50


def test_truth_as_json() -> None:
    simulation = simulate(500, 9, start="2026-03-01T08:30:00+01:00", span="2h")
    for _ in simulation:
        pass
    truth = json.loads(simulation.summary.to_json())
    assert truth["start"] == "2026-03-01T07:30:00Z"
    assert truth["now"] == "2026-03-01T09:30:00Z"
    assert list(truth["classes"]) == list(CLASSES)
    assert sum(truth["classes"].values()) == truth["events"] == 500
    assert datetime.fromisoformat(truth["now"]) == datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    assert "reference time: --now 2026-03-01T09:30:00Z" in str(simulation.summary)
