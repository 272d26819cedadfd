"""The tables of the warehouse: each column's name, type, unit and meaning, declared once.

Readers, ``docs/nightly.md`` and the tests all go by these declarations. ``date`` is the partition: a folder's name, no column of
the Parquet files.
"""

from typing import NamedTuple

import pyarrow as pa

from headrace.schemas.columns import MONEY, STRING, TIME

I64 = pa.int64()
I32 = pa.int32()
F64 = pa.float64()
REVENUES = pa.list_(pa.field("element", pa.struct([("currency", STRING), ("revenue", MONEY)])))
"""Amounts by currency."""

_DATE = ("date", pa.date32(), "", "calendar date in the warehouse's zone; the partition")
_USER = ("user_id", STRING, "", "keyed token of the user's id, as in the lake; never null")
_REVENUE = [
    ("revenue", MONEY, "currency", "purchases less refunds, if all are in one currency; null if there are none, or several"),
    ("currency", STRING, "ISO 4217", "the currency of revenue; null if there are several, or if the events state none"),
    ("revenues", REVENUES, "currency", "amounts of all currencies, sorted by currency, null last; empty if there are none"),
]  # fmt: skip
_VIEWS = "events of type page_view or product_view"


class Column(NamedTuple):
    """One column of a table."""

    name: str
    type: pa.DataType
    unit: str
    """Empty if the value has none."""
    about: str


class NightlyTable(NamedTuple):
    """One table of the warehouse."""

    about: str
    """What a row is, and how rows are sorted within a file."""
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """All columns, the partition first."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])


def _table(about: str, *columns: tuple[str, pa.DataType, str, str]) -> NightlyTable:
    return NightlyTable(about, tuple(Column(*c) for c in (_DATE, *columns)))


TABLES: dict[str, NightlyTable] = {
    "user_sessions": _table(
        "One row for each session, or part of a session within the date; sorted by user_id, session_start.",
        _USER,
        ("session_start", TIME, "UTC", "time of the first event"),
        ("session_end", TIME, "UTC", "time of the last event"),
        ("duration_seconds", F64, "seconds", "session_end less session_start"),
        ("events", I64, "events", "all events of the session on this date"),
        ("page_views", I64, "events", _VIEWS),
        ("unique_pages", I64, "pages", "distinct page_url apart from query and fragment"),
        ("entry_page", STRING, "URL", "page_url of the first event that has one"),
        ("exit_page", STRING, "URL", "page_url of the last event that has one"),
        ("purchases", I64, "events", "events of type purchase"),
        *_REVENUE,
        ("bounce", pa.bool_(), "", "exactly one page view and no purchase"),
        ("device_type", STRING, "", "of the first event that has one"),
        ("country", STRING, "ISO 3166-1", "of the first event that has one"),
        ("channel", STRING, "", "marketing channel of the first event that tells one, else direct"),
        ("is_bot", pa.bool_(), "", "whether any event is a robot's"),
        (
            "continued",
            pa.bool_(),
            "",
            "true if the session began before midnight, so that this is its part after midnight; "
            "count(*) FILTER (WHERE NOT continued) counts each visit once",
        ),
    ),
    "user_daily_metrics": _table(
        "One row for each user with an event on the date; sorted by user_id.",
        _USER,
        ("sessions", I64, "sessions", "rows in user_sessions"),
        ("visits", I64, "sessions", "of these the ones that are not continued: sessions that began on the date"),
        ("events", I64, "events", "all events"),
        ("page_views", I64, "events", _VIEWS),
        ("time_spent_seconds", F64, "seconds", "sum of the sessions' durations"),
        ("average_duration_seconds", F64, "seconds", "time_spent_seconds divided by sessions"),
        ("purchases", I64, "events", "events of type purchase"),
        *_REVENUE,
    ),
    "cube_geo": _table(
        "One row for each country and region that an event states; null is a value of its own; sorted by both, null last.",
        ("country", STRING, "ISO 3166-1", "the event's own"),
        ("region", STRING, "", "the event's own"),
        ("sessions", I64, "sessions", "sessions of which the first event is from here; adds up over rows"),
        ("users", I64, "users", "distinct users with an event from here, exact; does not add up over rows"),
        ("events", I64, "events", "all events, those without user_id too"),
        ("page_views", I64, "events", _VIEWS),
        ("purchases", I64, "events", "events of type purchase"),
        *_REVENUE,
    ),
    "cohorts": _table(
        "One row for each date on which users active on this date were first seen; sorted by cohort. Sums over rows give "
        "retention and value.",
        ("cohort", pa.date32(), "", "date of the users' first event in the warehouse"),
        ("day", I32, "days", "date less cohort; 0 on the first date"),
        ("users", I64, "users", "users of the cohort with an event on the date"),
        *_REVENUE,
    ),
    "product_daily": _table(
        "One row for each product and currency with an event of the types below, those without user_id too; sorted by both.",
        ("product_id", STRING, "", "never null"),
        ("category", STRING, "", "the product's most frequent one on the date in these events; the first by alphabet of several"),
        ("currency", STRING, "ISO 4217", "the event's own; null is a value of its own"),
        ("views", I64, "events", "events of type product_view"),
        ("add_to_carts", I64, "events", "events of type add_to_cart"),
        ("purchases", I64, "events", "events of type purchase"),
        ("units", I64, "units", "sum of the quantities that purchases state"),
        ("refunds", I64, "events", "events of type refund"),
        ("revenue", MONEY, "currency", "purchases less refunds; null if there are none"),
        ("buyers", I64, "users", "distinct users with a purchase, exact"),
    ),
    "funnel_daily": _table(
        "One row for each funnel and step, also where nobody came; sorted by funnel, step. A chain begins and ends on the date.",
        ("funnel", STRING, "", "name in the configuration"),
        ("step", I32, "", "number of the step, from 1"),
        ("name", STRING, "", "name of the step"),
        ("users", I64, "users", "who reached this step"),
        ("conversion", F64, "part of 1", "of those who took the first step; null if nobody did"),
        ("step_conversion", F64, "part of 1", "of those who reached the step before; null for the first step, or if nobody did"),
        ("drop_off", I64, "users", "who reached this step and no further; 0 for the last"),
        ("median_seconds", F64, "seconds", "exact median of the time since the step before; null for the first step, or of nobody"),
    ),
    "user_first_seen": _table(
        "One row for each user whose first date in the warehouse this is; sorted by user_id. What cohorts are made from.",
        _USER,
    ),
}  # fmt: skip
"""By name, in the order in which they are committed."""

_TYPES = {
    pa.date32(): "date",
    F64: "float64",
    MONEY: "decimal(38, 9)",
    REVENUES: "list of struct(currency string, revenue decimal(38, 9))",
    TIME: "timestamp, µs, UTC",
}


def reference() -> str:
    """Returns the section of ``docs/nightly.md`` about the tables, as Markdown."""
    parts = []
    for name, table in TABLES.items():
        rows = (
            f"| `{c.name}` | {_TYPES.get(c.type, str(c.type))} | {c.unit or '–'} | {c.about} |"
            for c in table.columns
        )
        head = f"### {name}\n{table.about}\n\n| column | type | unit | meaning |\n|---|---|---|---|"
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts) + "\n"


USER_TABLES = ("user_sessions", "user_daily_metrics", "user_first_seen")
"""Written by shard of users, one file a shard."""
SUMMARY_TABLES = tuple(name for name in TABLES if name not in USER_TABLES)
"""Summed up over all shards and splits, one file."""
