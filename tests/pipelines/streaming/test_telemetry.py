import re
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.pipelines.metrics_page import alert_rules, metrics_page
from headrace.pipelines.streaming.telemetry import Telemetry
from headrace.pipelines.streaming.telemetry_figures import Counts
from headrace.pipelines.streaming.telemetry_metrics import METRICS, UNITS
from tests.pipelines.streaming.figures import Clock, Totals, at, get, progress

ROOT = Path(__file__).parents[3]
Labels = tuple[tuple[str, str], ...]


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def scrape(telemetry: Telemetry) -> dict[tuple[str, Labels], float]:
    """What Prometheus would store, by name and labels."""
    status, kind, body = get(telemetry.port, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_a_scrape_shows_the_committed_ledger() -> None:
    clock = Clock()
    with Telemetry("s0001", "kafka://broker:9092/orders", 0, clock=clock) as telemetry:
        telemetry.update(progress(), Totals(watermark=at(-12), last_commit=at(-2)))
        telemetry.event("restart")
        telemetry.event("restart")
        telemetry.event("alarm")
        telemetry.update(progress(), Totals(watermark=at(-12), last_commit=at(-2)))
        clock.now += 0.5
        assert scrape(telemetry) == {
            (
                "headrace_info",
                (("source", "kafka://broker:9092/orders"), ("stream_job", "s0001"), ("version", "0.1.0")),
            ): 1.0,
            ("headrace_up", ()): 1.0,
            ("headrace_ready", ()): 0.0,
            ("headrace_update_age_seconds", ()): 0.5,
            ("headrace_rows_in_total", ()): 1000.0,
            ("headrace_rows_accepted_total", ()): 900.0,
            ("headrace_rows_rejected_total", (("reason", "json"), ("stage", "decode"))): 40.0,
            ("headrace_rows_rejected_total", (("reason", "duplicate"), ("stage", "deduplicate"))): 50.0,
            ("headrace_rows_rejected_total", (("reason", "conflict"), ("stage", "deduplicate"))): 0.0,
            ("headrace_rows_late_total", (("table", "minutes"),)): 7.0,
            ("headrace_rows_per_second", ()): 250.0,
            ("headrace_source_lag_records", ()): 25.0,
            ("headrace_rows_in_flight", ()): 10.0,
            ("headrace_watermark_delay_seconds", ()): 12.5,
            ("headrace_commits_total", ()): 5.0,
            ("headrace_commit_age_seconds", ()): 2.5,
            ("headrace_commit_latency_seconds", ()): 10.0,
            ("headrace_freshness_seconds", ()): 12.5,
            ("headrace_ledger_balanced", ()): 1.0,
            ("headrace_restarts_total", ()): 2.0,
            ("headrace_alarms_total", ()): 1.0,
        }


def test_what_is_not_known_has_no_series() -> None:
    with Telemetry("s0001", "dir:incoming", 0, clock=Clock()) as telemetry:
        assert {name for name, _ in scrape(telemetry)} == {
            "headrace_info",
            "headrace_up",
            "headrace_ready",
            "headrace_update_age_seconds",
            "headrace_restarts_total",
            "headrace_alarms_total",
        }
        assert scrape(telemetry)["headrace_up", ()] == 0
        telemetry.update(progress("starting", None), Totals(commits=0))
        found = {name for name, _ in scrape(telemetry)}
    unknown = ("watermark_delay", "commit_age", "commit_latency", "commit_interval", "freshness")
    assert not found & {f"headrace_{name}_seconds" for name in unknown}
    assert not found & {
        "headrace_rows_per_second",
        "headrace_source_lag_records",
        "headrace_rejected_ratio",
    }


def test_ages_grow_while_the_launcher_hangs() -> None:
    clock = Clock()
    telemetry = Telemetry("s0001", "dir:in", None, clock=clock)
    telemetry.update(progress(), Totals(watermark=at(-30), last_commit=at(0), behind=5))
    clock.now += 100
    moment = telemetry.moment()
    assert (moment.commit_age, moment.watermark_delay, moment.freshness) == (100.0, 130.0, 130.0)
    assert moment.now - moment.updated == 100


def test_a_source_read_to_its_end_is_as_fresh_as_the_last_commit() -> None:
    telemetry = Telemetry("s0001", "dir:in", None, clock=Clock())
    telemetry.update(progress(), Totals(watermark=at(-30), last_commit=at(-4), behind=0))
    assert telemetry.moment().freshness == 4.0
    telemetry.update(progress(), Totals(watermark=None, last_commit=at(-4), behind=0))
    assert telemetry.moment().freshness == 4.0
    telemetry.update(progress(), Totals(watermark=None, last_commit=at(-4), commits=0))
    assert telemetry.moment().freshness is None


def test_interval_and_latency_are_those_of_the_last_commit() -> None:
    clock = Clock()
    telemetry = Telemetry("s0001", "dir:in", None, clock=clock)
    seen = []
    for committed, watermark in [(0.0, None), (2.0, -5.0), (2.0, -1.0), (5.0, 4.5)]:
        mark = None if watermark is None else at(watermark)
        telemetry.update(progress(), Totals(last_commit=at(committed), watermark=mark))
        clock.now += 0.5
        moment = telemetry.moment()
        seen.append((moment.commit_interval, moment.commit_latency))
    assert seen == [(None, None), (2.0, 7.0), (2.0, 7.0), (3.0, 0.5)]


def test_the_rejected_share_is_that_of_the_last_minute() -> None:
    clock = Clock()
    telemetry = Telemetry("s0001", "dir:in", None, clock=clock)

    def ratio(accepted: int, bad: int, seconds: float) -> float | None:
        clock.now += seconds
        totals = Totals(rows_in=accepted + bad, accepted=accepted, rejected={"decode": {"json": bad}})
        telemetry.update(progress(), totals)
        return telemetry.moment().rejected_ratio

    assert ratio(1000, 500, 0) is None, "what older runs rejected does not count"
    assert ratio(1060, 540, 10) == 0.4
    assert ratio(1160, 540, 10) == 40 / 200
    assert ratio(1160, 540, 49.9) == 0.2
    assert ratio(1160, 540, 0.1) == 0.0, "the first look has left the window, the second is its start"
    assert ratio(1160, 540, 60) is None
    assert ratio(1100, 500, 1) is None, "rows that were rolled back are no share"
    assert ratio(1100, 510, 1) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 40)), max_size=30))
def test_the_rejected_share_is_a_share(steps: list[tuple[int, int, float]]) -> None:
    clock = Clock()
    telemetry = Telemetry("s0001", "dir:in", None, clock=clock)
    looks = []
    accepted = bad = 0
    for more, more_bad, seconds in steps:
        accepted, bad = accepted + more, bad + more_bad
        clock.now += seconds
        looks.append((clock.now, accepted, bad))
        telemetry.update(progress(), Totals(accepted=accepted, rejected={"decode": {"json": bad}}))
        changed = [look for i, look in enumerate(looks) if not i or sum(look[1:]) != sum(looks[i - 1][1:])]
        _, a, b = max((look for look in changed if look[0] <= clock.now - 60), default=changed[0], key=sum)
        expected = (bad - b) / (accepted + bad - a - b) if accepted + bad > a + b else None
        assert telemetry.moment().rejected_ratio == expected


def test_figures_are_a_copy() -> None:
    totals = Totals()
    telemetry = Telemetry("s0001", "dir:in", None, clock=Clock())
    telemetry.update(progress(), totals)
    totals.rejected["decode"]["json"] = 0
    totals.late.clear()
    counts = telemetry.moment().counts
    assert counts == Counts.of(Totals())
    assert counts is not None and counts.total_rejected == 90


def test_scrapes_while_figures_change_show_one_moment_each() -> None:
    with Telemetry("s0001", "dir:in", 0) as telemetry:
        telemetry.update(progress(), Totals(rows_in=0, accepted=0, rejected={}, in_flight=0))
        done = threading.Event()

        def work() -> None:
            n = 0
            while not done.is_set():
                n += 1
                telemetry.update(progress(), Totals(rows_in=n, accepted=n, rejected={}, in_flight=0))

        worker = threading.Thread(target=work)
        worker.start()
        try:
            pairs = []
            for _ in range(8):
                found = scrape(telemetry)
                pairs.append((found["headrace_rows_in_total", ()], found["headrace_rows_accepted_total", ()]))
        finally:
            done.set()
            worker.join()
    assert all(read == accepted for read, accepted in pairs)
    assert pairs == sorted(pairs) and pairs[-1][0] > 0


def test_an_unknown_event_is_refused() -> None:
    telemetry = Telemetry("s0001", "dir:in", None, clock=Clock())
    with pytest.raises(ValueError, match="event 'crash' is unknown; there are restart, stop, alarm"):
        telemetry.event("crash")  # type: ignore[arg-type]


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"headrace_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_seconds") == (metric.unit == "seconds"), metric.name
        assert metric.name.endswith("_ratio") == (metric.unit == "ratio"), metric.name
        assert metric.unit in UNITS and metric.meaning.endswith(".")
        assert set(metric.labels) <= {"stage", "reason", "table", "stream_job", "source", "version"}


def test_names_in_opentelemetry_translate_back() -> None:
    """By the rules of the translation: dots to underscores, the unit's suffix, ``_total`` for counters."""
    suffixes = {"s": "_seconds", "1": "_ratio"}
    for metric in METRICS:
        if metric.kind == "info":
            continue
        name = metric.otel_name.replace(".", "_") + suffixes.get(UNITS[metric.unit], "")
        assert name + ("_total" if metric.kind == "counter" else "") == metric.name


def test_alerts_name_metrics_that_exist() -> None:
    rules = yaml.safe_load(alert_rules())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [metric.alert.name for metric in METRICS]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    known = {metric.name: metric for metric in METRICS}
    for rule, metric in zip(rules, METRICS, strict=True):
        named = re.findall(r"headrace_\w+", rule["expr"])
        assert metric.name in named and set(named) <= set(known), rule
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+m", rule["for"]) and rule["labels"]["severity"] in (
            "critical",
            "warning",
            "info",
        )
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in metric.labels


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page(), "run `python -m headrace.pipelines.metrics_page > docs/metrics.md`"
    assert "| `headrace_rows_rejected_total` | counter | rows | `stage`, `reason` |" in page
