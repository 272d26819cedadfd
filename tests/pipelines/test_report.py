"""The page about an output."""

import re
from datetime import datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import pytest
from typer.testing import CliRunner

from headrace.pipelines.cli import app
from headrace.pipelines.report.lake_figures import LakeFigures, lake_figures
from headrace.pipelines.report.plots import bars, over_time
from headrace.pipelines.report.report import Quality, render, write_report
from headrace.schemas.errors import ConfigError
from headrace.simulator.simulate import simulate
from tests.pipelines.runs import run, table

NOON = datetime.fromisoformat("2026-01-05T12:00:00+00:00")
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    simulation = simulate(3000, 8, fault_rate=0.1)
    (folder / "events.jsonl").write_bytes(b"".join(simulation))
    now = datetime.fromisoformat(simulation.summary.to_dict()["now"])
    run(folder / "events.jsonl", folder / "out", key, now=now)
    return folder / "out"


class Checked(HTMLParser):
    """Fails if an element is not closed; notes what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            v for n, v in attrs if n in ("src", "href", "xlink:href") and v and not v.startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.integration
def test_the_page_is_whole_and_loads_nothing(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert write_report(out, page) == page.stat().st_size < 1_000_000
    text = page.read_text()
    checked = Checked()
    checked.feed(text)
    assert checked.open == [] and checked.loads == []
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|"http://[^"]*"', "", text)
    for title in ("Traffic", "Revenue", "Funnel", "Sessions", "Geography", "Quality", "Ledger", "balanced"):
        assert title in checked.text
    plots = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(plots) >= 8
    for plot in plots:
        ElementTree.fromstring(plot)


@pytest.mark.integration
def test_it_holds_no_event_and_no_user(out: Path, tmp_path: Path) -> None:
    write_report(out, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    events = table(out, "events")
    for name in ("event_id", "user_id", "session_id", "ip_address"):
        for value in set(events[name].to_pylist()) - {None}:
            assert value not in text, name


def test_its_numbers_are_those_of_the_lake(out: Path) -> None:
    found = lake_figures(out)
    events = table(out, "events")
    db = duckdb.connect()
    db.register("events", events.drop_columns(["event_time", "ingest_time"]))
    one = db.execute("SELECT count(*), count(DISTINCT user_id) FROM events").fetchone()
    assert (found.events, found.users) == one
    assert sum(n for _, _, n in found.traffic) == found.events
    assert (
        sorted(found.currencies)
        == db.execute(
            "SELECT coalesce(currency, 'none'), sum(revenue), count(*) FROM events WHERE revenue IS NOT NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
    )
    total = sum((revenue for _, _, revenue in found.revenue), Decimal(0))
    assert total == sum((revenue for _, revenue, _ in found.currencies), Decimal(0))
    assert sum(n for _, n, _ in found.countries) == found.events
    assert sum(found.durations) == found.sessions == sum(n for _, n, _ in found.channels) > 0
    step = db.execute("SELECT count(DISTINCT user_id) FROM events WHERE event_type = 'page_view'").fetchone()
    assert step == (found.funnel[0]["users"],)


def test_figures_do_not_depend_on_how_many_users_are_looked_at_at_once(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lake_figures(out)
    monkeypatch.setattr("headrace.pipelines.report.lake_figures.ROWS_AT_ONCE", 300)
    assert lake_figures(out) == whole


def test_an_empty_lake_and_an_unbalanced_ledger_are_told() -> None:
    quality = Quality(10, 7, {"decode": {"malformed_json": 2}}, 0, False, {"t": 3}, "stream")
    text = render(Path("some<out>"), LakeFigures(), quality)
    assert "some&lt;out&gt;" in text and "no events" in text
    assert "does not balance" in text and "late for t" in text and "20.00%" in text


def test_many_series_become_a_few_and_nothing_is_lost() -> None:
    minute = timedelta(minutes=1)
    points = [(NOON + minute * (n % 5), f"type{n:02d}", n) for n in range(30)]
    plot = over_time(points, minute, "events")
    assert "others" in plot and "type29" in plot and "type01" not in plot
    assert over_time([(NOON, "one", 1)], minute, "events")
    assert "a" * 33 + "…" in bars([("a" * 50, 3.0)])


@pytest.mark.integration
def test_the_command(out: Path, tmp_path: Path) -> None:

    done = CliRunner().invoke(app, ["report", str(out), "--page", str(tmp_path / "p.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "p.html").exists() and "kB" in done.output
    with pytest.raises(ConfigError, match="holds no lake"):
        lake_figures(tmp_path)
