"""Users' profiles as mergeable states, against plain Python and DuckDB."""

import doctest
import io
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms import profile_users as module
from headrace.transforms.batches import plain, replace
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.conditions import conditions
from headrace.transforms.profile_users import PROFILES, STATE, ProfileUsers, finish, merge, partial

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80)
COLUMNS = ("event_id", "event_time", "user_id", "event_type", "category", "currency", "revenue")
SCHEMA = pa.schema([ENRICHED_SCHEMA.field(n) for n in COLUMNS])


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def event(
    user: str | None,
    second: int,
    type_: str | None = "click",
    category: str | None = None,
    revenue: str | Decimal | None = None,
    currency: str | None = "EUR",
) -> dict:
    money = None if revenue is None else Decimal(revenue)
    time = START + timedelta(seconds=second)
    values = (f"{second}", time, user, type_, category, currency, money)
    return dict(zip(COLUMNS, values, strict=True))


def oracle(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    users = defaultdict(list)
    for row in rows:
        users[row["user_id"]].append(row)
    states, profiles = [], []
    for user, own in sorted(users.items()):
        spend: dict[str | None, Decimal] = {}
        for row in own:
            if row["revenue"] is not None:
                spend[row["currency"]] = EXACT.add(spend.get(row["currency"], Decimal(0)), row["revenue"])
        counts = Counter(r["category"] for r in own if r["category"] is not None)
        common = {
            "user_id": user,
            "first_seen": min(r["event_time"] for r in own),
            "last_seen": max(r["event_time"] for r in own),
            "events": len(own),
            "purchases": sum(r["event_type"] == "purchase" for r in own),
            "spend": [
                {"currency": c, "revenue": spend[c]} for c in sorted(spend, key=lambda c: (c is None, c))
            ],
        }
        states.append(common | {"categories": [{"category": c, "events": counts[c]} for c in sorted(counts)]})
        best = min(counts, key=lambda c: (-counts[c], c), default=None)
        profiles.append(common | {"preferred_category": best})
    return states, profiles


ROW = st.builds(
    event,
    st.sampled_from(["", "u", "v", "é", "w" * 40]),
    st.integers(-1000, 1000),
    st.sampled_from(["click", "purchase", "refund", None]),
    st.sampled_from(["", "books", "Books", "toys", None]),
    st.none() | st.decimals(-(10**20), 10**20, places=9),
    st.sampled_from(["EUR", "USD", None]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, max_size=30), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_cut_order_and_merge_shape_equals_plain_python(rows, size, shuffle):
    states, profiles = oracle(rows)
    whole = partial(events(rows))
    assert whole.to_pylist() == states
    assert finish(whole).to_pylist() == profiles
    shuffle.shuffle(rows)
    parts = [partial(events(rows[i : i + size])) for i in range(0, len(rows) + 1, size)]
    while len(parts) > 1:
        taken = [
            parts.pop(shuffle.randrange(len(parts))) for _ in range(min(len(parts), shuffle.randint(2, 4)))
        ]
        parts.append(merge(taken))
    assert parts[0].equals(whole)
    assert finish(parts[0]).equals(finish(whole))


@settings(max_examples=15, deadline=None)
@given(st.lists(ROW, max_size=60))
def test_profiles_are_what_duckdb_finds(rows):
    batch = events(rows)
    duckdb.register("e", pa.table([plain(c) for c in batch.columns], names=batch.schema.names))
    expected = duckdb.sql(
        """with c as (select user_id, category, count(*) n from e where category is not null group by all)
           select user_id, epoch_us(min(event_time)), epoch_us(max(event_time)), count(*),
              count(*) filter (event_type = 'purchase'),
              (select category from c where c.user_id = e.user_id order by n desc, category limit 1)
           from e group by user_id order by user_id"""
    ).fetchall()
    found = finish(partial(batch))
    seen = [found[n].cast(pa.int64()).to_pylist() for n in ("first_seen", "last_seen")]
    others = [found[n].to_pylist() for n in ("events", "purchases", "preferred_category")]
    assert list(zip(found["user_id"].to_pylist(), *seen, *others, strict=True)) == expected


def test_yesterdays_state_kept_as_parquet_and_todays_make_tomorrows():
    rows = [event("u", i, "purchase", "abc"[i % 3], f"{i}.01") for i in range(10)] + [event("v", 3)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_batches([partial(events(rows[:6]))]), file)
    (yesterday,) = pq.read_table(file).to_batches()
    tomorrow = merge([yesterday, partial(events(rows[6:]))])
    assert tomorrow.equals(partial(events(rows)))
    coder = RecordBatchCoder()
    assert merge([coder.decode(coder.encode(tomorrow.slice(1)))]).equals(tomorrow.slice(1))


def test_ties_of_categories_go_to_the_first_by_code_point():
    rows = [
        event("u", 0, category=c) for c in ("toys", "books", "Zoo", "toys", "books", "Zoo", None, None, None)
    ]
    assert finish(partial(events(rows)))["preferred_category"].to_pylist() == ["Zoo"]
    assert finish(merge([partial(events(rows)), partial(events(rows[:1]))]))[
        "preferred_category"
    ].to_pylist() == ["toys"]


def test_types_encodings_slices_and_empty_batches():
    rows = [event("u", 1, "purchase", "a", "1"), event("v", 2), event("u", 0, "refund", "b", "-3", None)]
    batch = events(rows)
    expected = partial(batch)
    assert expected.schema.equals(STATE)
    assert finish(expected).schema.equals(PROFILES)
    plains = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names)
    encoded = replace(batch, {"user_id": batch["user_id"].dictionary_encode()})
    for variant in (plains, encoded, events([rows[0], *rows]).slice(1)):
        assert partial(variant).equals(expected)
    nothing = partial(batch.slice(0, 0))
    assert merge([nothing, expected, nothing]).equals(expected)
    assert finish(merge([nothing])).num_rows == nothing.num_rows == 0
    nulls = replace(batch, {n: pa.nulls(3) for n in ("category", "currency", "revenue")})
    assert [s for s in partial(nulls)["spend"].to_pylist() if s] == []


def test_which_events_are_purchases_can_be_said():
    rows = [event("u", 0, t) for t in ("purchase", "subscribe", "click")]
    wanted = conditions({"event_type": ["purchase", "subscribe"]}, "purchases")
    assert partial(events(rows), wanted)["purchases"].to_pylist() == [2]


def test_sums_to_the_last_of_38_digits_and_not_beyond():
    big = partial(events([event("u", 0, revenue=BIG)]))
    less = partial(events([event("u", 0, revenue=BIG.copy_negate())]))
    assert merge([big, less, big])["spend"].to_pylist() == [[{"currency": "EUR", "revenue": BIG}]]
    with pytest.raises(OverflowError, match="'spend': a sum has more than 38 digits"):
        merge([big, big])


def test_bad_batches_are_refused():
    for row in (event(None, 0), event("u", 0) | {"event_time": None}):
        with pytest.raises(ValueError, match="no event_time or no user_id"):
            partial(events([row]))
    with pytest.raises(ConfigError, match=r"profiles over \['category'\]: the batches have no such column"):
        partial(events([]).drop_columns(["category"]))


ROWS = [event(f"u{i % 11}", i, "purchase" if i % 4 else "click", "abc"[i % 3], f"{i}") for i in range(80)]


@pytest.mark.parametrize("windows", [None, FixedWindows(30)], ids=["global", "fixed"])
@pytest.mark.parametrize("table", ["profiles", "state"])
def test_the_transform_is_the_kernel_however_batches_are_cut(table, windows):
    rows = [*ROWS, event(None, 0), event("u", 0) | {"event_time": None}]

    def build(pipeline):
        read = pipeline | Batches([(events(rows[i::3]), START.timestamp()) for i in range(3)])
        if windows:
            read = read | beam.WindowInto(windows)
        return (read | ProfileUsers(table, shards=4))._asdict()

    found = collect(build)
    for number in range(3 if windows else 1):
        low = number * 30
        inside = ROWS[low : low + 30] if windows else ROWS
        state, profiles = oracle(inside)
        end = START + timedelta(seconds=low + 30)
        mine = [e for e in found["accepted"] if not windows or float(e.window.end) == end.timestamp()]
        values = sorted((r for e in mine for r in e.value.to_pylist()), key=lambda r: r["user_id"])
        assert values == (profiles if table == "profiles" else state)
        assert all(e.micros == e.window.max_timestamp().micros for e in mine)
    lost = [r for e in found["rejected"] for r in e.value.to_pylist()]
    assert sorted((r["stage"], r["reason"]) for r in lost) == [
        ("profile_users", "no_key"),
        ("profile_users", "no_time"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "all"}, "table='all': must be one of profiles, state"),
        ({"purchases": {}}, "purchases={}: name at least one condition"),
        ({"purchases": {"event_type": []}}, "purchases.event_type is empty"),
        ({"shards": 1.5}, r"ProfileUsers\(shards=1.5\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ProfileUsers(**arguments)


def test_a_trigger_of_unbounded_input_is_refused():
    batches = beam.Pipeline(runner="FnApiRunner") | Batches([])
    batches.is_bounded = False
    triggered = beam.WindowInto(
        GlobalWindows(), trigger=Repeatedly(AfterCount(5)), accumulation_mode=AccumulationMode.DISCARDING
    )
    with pytest.raises(ConfigError, match=r"publishes by every=, so the trigger would be ignored"):
        batches | triggered | ProfileUsers()
    with pytest.raises(ConfigError, match="every=0: must be a timedelta above zero"):
        ProfileUsers(every=0)


def test_unbounded_input_gives_users_that_changed_as_they_are():
    batches = [[event("u", 1), event("v", 2)], [event("u", 3, "purchase", "toys", "5")], [event("v", 4)]]
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int)).advance_watermark_to(
        START.timestamp()
    )
    for number, rows in enumerate(batches):
        time = min(r["event_time"] for r in rows).timestamp()
        stream = stream.add_elements([TimestampedValue(number, time)])
        stream = stream.advance_processing_time(10_000_000_000) if number < 2 else stream

    def build(pipeline):
        numbers = pipeline | stream.advance_watermark_to_infinity()
        read = numbers | beam.Map(lambda n: events(batches[n])).with_output_types(pa.RecordBatch)
        return (read | ProfileUsers(shards=1))._asdict()

    found = [e.value.to_pylist() for e in collect(build, stream=True)["accepted"]]
    seen = [[(r["user_id"], r["events"], r["purchases"]) for r in rows] for rows in found]
    assert seen == [[("u", 1, 0), ("v", 1, 0)], [("u", 2, 1)], [("v", 2, 0)]]
    whole = finish(partial(events([r for rows in batches for r in rows]))).to_pylist()
    assert {r["user_id"]: r for rows in found for r in rows} == {r["user_id"]: r for r in whole}


def test_documented_examples_run():
    assert doctest.testmod(module, raise_on_error=True).attempted == 1
