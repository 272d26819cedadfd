"""Window tables from a configuration."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.pipelines.metric_settings import windows_from
from headrace.schemas.errors import ConfigError
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.window_definitions import Count, Distinct, Quantiles, Ratio, Sum, Top, Windows

PAGE = Path(__file__).parents[2] / "docs" / "windows.md"


def test_the_example_of_the_page_is_read() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert windows_from(yaml.safe_load(example)["metrics"]) == {
        "events_per_minute": METRICS["events_per_minute"],
        "searches_5m": Windows(
            timedelta(minutes=5),
            ("country",),
            {
                "searches": Count(),
                "users": Distinct("user_id"),
                "from_search_engines": Count({"referrer": ["*google*", "*bing*"]}),
                "share": Ratio("from_search_engines", "searches"),
            },
            {"event_type": "search", "is_bot": [False, None]},
            timedelta(minutes=1),
        ),
        "top_orders": Windows(
            timedelta(hours=1),
            ("currency", "product_id"),
            {"spent": Sum("revenue"), "order": Quantiles("revenue", (0.5, 0.9))},
            top=Top(3, "spent", ("currency",)),
        ),
    }


def test_the_page_names_every_ready_made_table() -> None:
    page = PAGE.read_text()
    for name in METRICS:
        short = re.sub(r"^active_users(_\w+)$", r"\1", name)
        assert f"`{short}`" in page or f"`{name}`" in page, name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"events_per_minut": None}, "metrics.events_per_minut is null, but no .* is ready-made; did you mean 'events_per_minute'"),
        ({"m": 3}, "metrics.m: expected a table of settings"),
        ({"m": {}}, "metrics.m: 'measures' is missing"),
        ({"m": {"measures": {"n": "count"}, "size": 3}}, "metrics.m.size: unknown setting 'size'; known: size_seconds"),
        ({"m": {"measures": {"n": "count"}, "size_seconds": 0}}, "size_seconds is 0.0; it must be 0.001 or more"),
        ({"m": {"measures": {"n": "cuont"}}}, "measures.n is 'cuont'; write count, or a table"),
        ({"m": {"measures": {"n": {"summ": "revenue"}}}}, "name one of .*; found .* did you mean 'sum'"),
        ({"m": {"measures": {"n": {"sum": "a", "min": "a"}}}}, "name one of .*, once"),
        ({"m": {"measures": {"n": {"sum": 3}}}}, "measures.n.sum is 3; write the name of a column"),
        ({"m": {"measures": {"n": {"sum": "revenue", "q": [0.5]}}}}, "'q' can't stand with sum; possible: where"),
        ({"m": {"measures": {"n": {"count": "user_id"}}}}, "count is 'user_id'; write `count: true`"),
        ({"m": {"measures": {"n": {"ratio": "a"}}}}, "ratio is 'a'; write the names of two measures"),
        ({"m": {"measures": {"n": {"sum": "revnue"}}}}, "the events have no column 'revnue'; did you mean 'revenue'"),
        ({"m": {"by": ["contry"], "measures": {"n": "count"}}}, "no column 'contry'; did you mean 'country'"),
        ({"m": {"measures": {"n": "count"}, "where": {"event_type": []}}}, "metrics.m: where.event_type is empty"),
        ({"m": {"measures": {"n": "count"}, "top": {"k": 1, "measure": "m"}}}, "metrics.m: top: 'm' is no count"),
        ({"m": {"measures": {"pane": "count"}}}, "metrics.m: .*'pane'.* would be columns twice"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        windows_from(given)


def test_columns_of_profiles_can_be_used() -> None:
    given = {"m": {"by": ["profile_tier"], "measures": {"n": "count"}}}
    assert windows_from(given, ["event_time", "profile_tier"])["m"].by == ("profile_tier",)
