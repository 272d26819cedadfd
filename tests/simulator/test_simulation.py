"""What the traffic looks like: determinism, distributions, seasons, anomalies, faults in detail."""

import hashlib
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import iptocc
import orjson
import pytest

from headrace.schemas.errors import ConfigError
from headrace.simulator import catalogue, faults, history, simulation
from headrace.simulator.people import Population, popularity
from headrace.simulator.simulate import DEFAULT_START, simulate
from headrace.simulator.traffic import EFFECTS, parse_anomaly, schedule

NOON = int(DEFAULT_START.timestamp() * 1000)


def events_of(**arguments: Any) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in b"".join(simulate(**arguments)).splitlines()]


def time_of(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event.get("metadata", event)["timestamp"])


def test_the_bytes_of_a_seed_are_pinned_on_every_python() -> None:
    data = b"".join(simulate(3000, 42, anomalies=["bot_flood@+10m", "payment_outage@+20m/2m"]))
    assert (
        hashlib.sha256(data).hexdigest() == "d8339b7bd6e5cb5a87f5f248c115b4d85f8e6575e1ddea32c6467bb06368f9aa"
    )
    log = b"".join(simulate(1000, 42, families=["weblog"]))
    assert (
        hashlib.sha256(log).hexdigest() == "e2bd7c65b8ecfad47f90a7a40f2cb70d3a68b6dc9bac2af7d48a42a2dd9d9ea8"
    )


def test_same_arguments_same_bytes_other_seed_other_bytes() -> None:
    first, again, other = (b"".join(simulate(800, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first.splitlines()) == len(other.splitlines()) == 800


def test_order_of_families_does_not_matter() -> None:
    one = b"".join(simulate(300, 1, families=["commerce", "envelope"]))
    assert one == b"".join(simulate(300, 1, families=("envelope", "commerce")))


def test_any_number_of_events_is_met_exactly() -> None:
    for events in (1, 2, 3, 59, 1000, 1001):
        run = simulate(events, 1)
        chunks = list(run)
        assert sum(chunk.count(b"\n") for chunk in chunks) == events == run.summary.events
        assert all(chunk.endswith(b"\n") for chunk in chunks)


def test_event_times_lie_in_the_span_and_arrive_about_in_order() -> None:
    times = [time_of(event) for event in events_of(events=5000, seed=1, fault_rate=0.0)]
    assert min(times) >= DEFAULT_START
    assert max(times) <= DEFAULT_START + timedelta(hours=1)
    late = sum(after < before - timedelta(seconds=5) for before, after in pairwise(times))
    assert 20 < late < 600
    assert sum(after < before for before, after in pairwise(times)) > late


def test_sessions_last_and_run_through_the_funnel() -> None:
    sessions: defaultdict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for event in events_of(events=10_000, seed=2, families=["envelope"], fault_rate=0.0):
        sessions[event["user"]["session_id"]].append((time_of(event), event["payload"]["event_type"]))
    sizes = sorted(map(len, sessions.values()))
    assert 3 <= sizes[len(sizes) // 2] <= 12
    gaps = sorted(b[0] - a[0] for s in sessions.values() for a, b in pairwise(sorted(s)))
    assert timedelta(seconds=5) < gaps[len(gaps) // 2] < timedelta(minutes=1)
    assert gaps[-1] < timedelta(minutes=20)
    types = Counter(kind for session in sessions.values() for _, kind in session)
    assert types["product_view"] > types["add_to_cart"] > types["checkout_start"] > types["refund"] > 0
    assert types["add_to_cart"] > types["purchase"] > types["refund"]
    assert types["search"] > types["signup"] > 0


def test_users_come_back_with_one_address_and_country() -> None:
    seen: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    sessions: defaultdict[str, set[str]] = defaultdict(set)
    for event in events_of(events=5000, seed=3, families=["envelope"], fault_rate=0.0):
        user = event["user"]["id"]
        seen[user].add((event["context"]["ip_address"], event["context"]["location"]["country"]))
        sessions[user].add(event["user"]["session_id"])
    assert {len(places) for places in seen.values()} == {1}
    assert sum(len(visits) > 1 for visits in sessions.values()) > 50
    assert len(seen) > 200


def test_addresses_are_in_the_country_they_claim_or_documentation() -> None:
    places = {
        (e["context"]["ip_address"], e["context"]["location"]["country"])
        for e in events_of(events=5000, seed=4, families=["envelope"], fault_rate=0.0)
    }
    found = {(ip, country): iptocc.country_code(ip) for ip, country in places}
    documentation = [ip for (ip, _), code in found.items() if code is None]
    assert all(
        ip.startswith((*catalogue.DOCUMENTATION_V4, catalogue.DOCUMENTATION_V6)) for ip in documentation
    )
    assert 0 < len(documentation) < len(places) / 20
    assert all(code in (None, country) for (_, country), code in found.items())
    assert sum(":" in ip for ip, _ in places) > len(places) / 40
    assert len({country for _, country in places}) > 15


def test_agents_products_and_prices() -> None:
    events = events_of(events=10_000, seed=5, families=["clickstream"], fault_rate=0.0)
    agents = Counter(event["user_agent"] for event in events)
    assert len(agents) > 25
    assert any("Googlebot" in agent for agent in agents)
    prices: defaultdict[tuple[str, str], set[float]] = defaultdict(set)
    views: Counter[str] = Counter()
    for event in events:
        if "price" in event:
            prices[event["product_id"], event["currency"]].add(event["price"])
            views[event["product_id"]] += 1
    assert {len(values) for values in prices.values()} == {1}
    ranked = [count for _, count in views.most_common()]
    assert ranked[0] > 4 * ranked[10] > 0
    assert len(views) > 150
    referrers = {event["referrer"] for event in events}
    assert None in referrers and "https://www.google.com/" in referrers
    assert any("utm_source=newsletter" in event["page_url"] for event in events)
    assert any(event["referrer"] and event["referrer"].startswith(catalogue.HOST) for event in events)


def test_a_purchase_is_paid_from_the_same_user_and_order() -> None:
    events = events_of(events=12_000, seed=6, fault_rate=0.0)
    orders = {
        e["transaction"]["order_id"]: e
        for e in events
        if e.get("event_type") == "purchase" and "transaction" in e
    }
    paid = [e for e in events if e.get("reference") in orders]
    assert len(paid) > 20
    for payment in paid:
        order = orders[payment["reference"]]
        assert payment["account_id"] == f"acct-{order['user_id'][:12]}"
        assert float(payment["amount"]) == order["transaction"]["total_amount"]
        assert payment["currency"] == order["properties"]["currency"]
    for tick in (e for e in events if e.get("record_type") == "tick"):
        assert float(tick["bid"]) < float(tick["price"]) < float(tick["ask"])


def test_popular_items_follow_zipf() -> None:
    counts = Counter(popularity(100))
    assert sum(counts.values()) == 4096
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.02)
    assert counts[0] == pytest.approx(10 * counts[9], rel=0.05)


@pytest.mark.parametrize("events", [0, 1, 999, 1_000_000])
def test_the_schedule_adds_up_and_is_gapless(events: int) -> None:
    anomaly = parse_anomaly("traffic_spike@+90s/45s", DEFAULT_START, timedelta(hours=2))
    steps = list(schedule(events, NOON + 123, NOON + 7_200_000, [anomaly]))
    assert sum(step.events for step in steps) == events
    assert steps[0].start == NOON + 123 and steps[-1].end == NOON + 7_200_000
    assert all(a.end == b.start for a, b in pairwise(steps))
    assert {step.end - step.start for step in steps if step.anomalies} == {30_000, 15_000}


def test_days_weeks_and_sales_have_their_seasons() -> None:
    hours: Counter[int] = Counter()
    days: Counter[int] = Counter()
    sale = [0, 0]
    for step in schedule(10_000_000, NOON, NOON + 14 * 86_400_000):
        time = datetime.fromtimestamp(step.start / 1000, UTC)
        hours[time.hour] += step.events
        days[time.weekday()] += step.events
        if time.hour == 19:
            sale[step.sale] += step.events
    assert hours[20] > 5 * hours[3]
    assert days[5] > 1.15 * days[1]
    assert sale[True] > 1.5 * sale[False]


def minute_of(event: dict[str, Any]) -> int:
    return int((time_of(event) - DEFAULT_START).total_seconds()) // 60


def mean(counts: Counter[int], minutes: range) -> float:
    return sum(counts[m] for m in minutes) / len(minutes)


@pytest.mark.parametrize("kind", ["traffic_spike", "traffic_drop", "bot_flood"])
def test_an_anomaly_changes_the_traffic(kind: str) -> None:
    arguments = {"anomalies": [f"{kind}@+10m/4m"], "families": ["interaction", "clickstream"]}
    events = events_of(events=8000, seed=7, span="40m", fault_rate=0.0, **arguments)
    counts = Counter(minute_of(event) for event in events)
    ratio = mean(counts, range(10, 14)) / mean(counts, range(4, 10))
    assert ratio == pytest.approx(EFFECTS[kind] / 100, rel=0.25)
    assert mean(counts, range(15, 19)) == pytest.approx(mean(counts, range(4, 10)), rel=0.2)


def test_a_bot_flood_comes_from_a_few_crawlers() -> None:
    users: Counter[str] = Counter()
    agents: Counter[str] = Counter()
    for event in events_of(
        events=4000, seed=8, anomalies=["bot_flood@+0m/1h"], families=["clickstream"], fault_rate=0.0
    ):
        users[event["user_id"]] += 1
        agents[event["user_agent"]] += 1
    assert sum(count for _, count in users.most_common(8)) > 0.6 * 4000
    assert sum(agents[device.user_agent] for device in catalogue.BOTS) > 0.65 * 4000


def test_a_fraud_burst_buys_much_from_few_addresses() -> None:
    calm, burst = (
        [
            e
            for e in events_of(
                events=4000, seed=9, anomalies=anomalies, families=["envelope"], fault_rate=0.0
            )
            if e["payload"]["event_type"] == "purchase"
        ]
        for anomalies in ([], ["fraud_burst@+0m/1h"])
    )
    assert len(burst) > 3 * len(calm)
    addresses = Counter(e["context"]["ip_address"] for e in burst)
    assert sum(count for _, count in addresses.most_common(6)) > 0.6 * len(burst)
    assert len({e["user"]["id"] for e in burst}) > 50


def test_a_payment_outage_stops_purchases_and_payments() -> None:
    minutes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    arguments = {"anomalies": ["payment_outage@+10m/6m"], "families": ["envelope", "financial"]}
    for event in events_of(events=10_000, seed=7, span="40m", fault_rate=0.0, **arguments):
        body = event.get("payload", event)
        kind = body.get("event_type") or ("paid" if body.get("reference", "").startswith("ord-") else "other")
        minutes[kind][minute_of(event)] += 1
    for kind in ("purchase", "paid"):
        assert mean(minutes[kind], range(11, 16)) < 0.1 * mean(minutes[kind], range(4, 10))
        assert mean(minutes[kind], range(17, 30)) > 0.5 * mean(minutes[kind], range(4, 10))
    assert sum(minutes["payment_failed"][m] for m in range(10, 16)) > 20
    assert sum(minutes["payment_failed"][m] for m in range(9)) == 0


def test_personal_data_is_well_formed_and_where_masking_looks() -> None:
    rng = Random(1)
    for _ in range(200):
        number = faults.card(rng)
        doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(number))]
        assert len(number) == 16 and sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0
        assert faults.email(rng).rpartition("@")[2] in catalogue.MAIL_DOMAINS
    data = b"".join(simulate(4000, 10, fault_rate=1.0)).decode("utf-8", "replace")
    assert data.count("@example.") + data.count("%40example.") > 350
    assert "contact=4" in data and '"query":"receipt for ' in data and '"form":{"contact":' in data
    log = b"".join(simulate(500, 10, families=["weblog"], fault_rate=1.0)).decode()
    assert "contact=" in log


def test_a_line_that_is_broken_is_broken_for_every_draw() -> None:
    line = '{"user_id":"ü","quantity":1}'
    for kind in ("truncated", "not_a_number", "invalid_utf8", "bad_escape", "byte_order_mark"):
        for draw in (0.0, 0.3, 0.5, 0.7, 0.999999):
            text = faults.break_line(kind, line, draw).encode("utf-8", "surrogateescape")
            assert b"\n" not in text
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(text)


def test_memory_does_not_grow_with_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_ACTIVE", 500)
    monkeypatch.setattr(history, "_KEPT", 50)
    crowd = simulate(3000, 11, span="1s", fault_rate=0.3)
    for _ in crowd:
        assert len(crowd._active) <= 500
        assert len(crowd._history._rejected) <= 50 >= len(crowd._history._with_id)
    assert crowd.summary.events == 3000


def test_a_population_without_crawled_families_still_has_bots() -> None:
    population = Population(Random(1), 1, 20, ("commerce",))
    assert {population.crawler().family for _ in range(5)} == {"commerce"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"events": 0}, "events=0 must be 1 or more"),
        ({"rate": 0}, "rate=0 must be more than 0"),
        ({"rate": float("nan")}, "rate=nan must be more than 0"),
        ({"fault_rate": 1.5}, "fault_rate=1.5 must lie between 0 and 1"),
        ({"families": ["weblog", "envelope"]}, "simulate weblog on its own"),
        ({"families": ["clicks"]}, "families='clicks': choose from envelope"),
        ({"families": []}, "choose from envelope"),
        ({"start": "noon"}, "start='noon' is not an ISO 8601 time"),
        ({"start": "0900-01-01"}, "outside of the years 1971 to 9000"),
        ({"start": datetime(2026, 1, 1)}, "has no time zone"),
        ({"span": "5 parsecs"}, "span='5 parsecs' is not a duration"),
        ({"span": "0s"}, "span='0s' must be longer"),
        ({"span": "9999999999999d"}, "longer than a calendar"),
        ({"anomalies": ["flood@+1m"]}, "with KIND one of traffic_spike"),
        ({"anomalies": ["bot_flood"]}, "write KIND@T"),
        ({"anomalies": ["bot_flood@+2h"]}, "outside of the simulated time"),
        ({"anomalies": ["bot_flood@soon"]}, "is not an ISO 8601 time"),
        ({"anomalies": ["bot_flood@+1m/0s"]}, "has no length"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        simulate(**{"events": 10, **arguments})


def test_times_of_anomalies_and_starts_may_carry_offsets() -> None:
    anomaly = parse_anomaly("traffic_drop@2026-01-05T13:30:00+01:00", DEFAULT_START, timedelta(hours=1))
    assert anomaly == ("traffic_drop", NOON + 1_800_000, NOON + 2_100_000)
    at_end = parse_anomaly("traffic_drop@2026-01-05T12:58:00/1h30m", DEFAULT_START, timedelta(hours=1))
    assert at_end.end == NOON + 3_600_000
