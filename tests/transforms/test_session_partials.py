"""Sessions as mergeable partial tables, against plain Python and DuckDB."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipelines.definition import Definition
from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, MONEY, RAW_SCHEMA, TIME
from headrace.schemas.errors import ConfigError
from headrace.simulator.simulate import simulate
from headrace.transforms.batches import plain, replace
from headrace.transforms.channel import channels
from headrace.transforms.coders import RecordBatchCoder
from headrace.transforms.keys import Key
from headrace.transforms.session_definitions import RESULTS, Sessions
from headrace.transforms.session_partials import finish, merge, partial

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BIG = Decimal("9" * 29 + ".999999999")
EXACT = Context(prec=80)
SHOP = "https://shop.example"
MINUTES = Sessions()
MONEY_ROW = {"event_time": EPOCH, "user_id": "u", "event_type": "purchase"}


def events(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=ENRICHED_SCHEMA)


def sessions_of(batches: list[pa.RecordBatch], sessions: Sessions = MINUTES) -> pa.Table:
    return finish(merge([partial(b, sessions) for b in batches], sessions), sessions)


def event(seconds: float, user: str | None = "u", **more: object) -> dict:
    time = EPOCH + timedelta(seconds=seconds)
    return {"event_time": time, "event_id": f"{seconds:09.6f}", "user_id": user} | more


def order_of(row: dict, column: str) -> tuple:
    return row["event_time"], row.get("event_id") is None, row.get("event_id"), row[column]


def oracle(rows: list[dict], sessions: Sessions) -> list[dict]:
    channel = channels(events(rows)).to_pylist()
    keys: dict[tuple, list[dict]] = defaultdict(list)
    for row, its_channel in zip(rows, channel, strict=True):
        if all(row.get(name) in values for name, values in sessions.where):
            keys[tuple(row.get(n) for n in sessions.by)].append(row | {"channel": its_channel})
    found = []
    for key, members in keys.items():
        members.sort(key=lambda r: r["event_time"])
        times = [m["event_time"] for m in members]
        cuts = [i for i in range(len(times)) if i == 0 or times[i] - times[i - 1] > sessions.gap]
        for start, end in zip(cuts, [*cuts[1:], len(members)], strict=True):
            found.append(dict(zip(sessions.by, key, strict=True)) | session(members[start:end]))
    return sorted(found, key=lambda r: [(r[n] is None, r[n]) for n in (*sessions.by, "session_start")])


def session(rows: list[dict]) -> dict:
    def having(column: str) -> list[str]:
        with_value = [r for r in rows if r.get(column) is not None]
        return [r[column] for r in sorted(with_value, key=lambda r: order_of(r, column))] or [None]

    sums: dict[str | None, Decimal] = {}
    for row in rows:
        if row.get("revenue") is not None:
            currency = row.get("currency")
            sums[currency] = EXACT.add(sums.get(currency, Decimal(0)), row["revenue"])
    currencies = sorted(sums, key=lambda c: (c is None, c))
    types = [r.get("event_type") for r in rows]
    views, purchases = types.count("page_view") + types.count("product_view"), types.count("purchase")
    start, end = rows[0]["event_time"], rows[-1]["event_time"]
    pages = {r["page_url"].split("?")[0].split("#")[0] for r in rows if r.get("page_url") is not None}
    return {
        "session_start": start,
        "session_end": end,
        "duration_seconds": (end - start).total_seconds(),
        "events": len(rows),
        "page_views": views,
        "unique_pages": len(pages),
        "entry_page": having("page_url")[0],
        "exit_page": having("page_url")[-1],
        "purchases": purchases,
        "revenue": sums[currencies[0]] if len(sums) == 1 else None,
        "currency": currencies[0] if len(sums) == 1 else None,
        "revenues": [{"currency": c, "revenue": sums[c]} for c in currencies],
        "bounce": views == 1 and purchases == 0,
        "device_type": having("device_type")[0],
        "country": having("country")[0],
        "channel": having("channel")[0] or "direct",
        "is_bot": any(r.get("is_bot") for r in rows),
    }


SECONDS = st.integers(-8, 8).map(lambda s: EPOCH + timedelta(seconds=s))
TIMES = st.one_of(SECONDS, SECONDS.map(lambda time: time + MICROSECOND))
ROW = st.fixed_dictionaries(
    {"event_time": TIMES, "user_id": st.sampled_from(["", "u"])},
    optional={
        "event_id": st.sampled_from(["", "a", "b", "c", "ä"]),
        "event_type": st.sampled_from(["", "click", "page_view", "product_view", "purchase"]),
        "page_url": st.sampled_from(
            ["", f"{SHOP}/", f"{SHOP}/?a", f"{SHOP}/#b?c", f"{SHOP}/a?utm_medium=email#x"]
        ),
        "referrer": st.sampled_from([f"{SHOP}/", "https://www.google.com/", "https://t.co/a", "-"]),
        "platform": st.sampled_from(["web", "ios"]),
        "device_type": st.sampled_from(["mobile", "desktop"]),
        "country": st.sampled_from(["DE", "FR"]),
        "currency": st.sampled_from(["EUR", "USD", ""]),
        "revenue": st.decimals(-(10**20), 10**20, places=9),
        "is_bot": st.booleans(),
    },
)
DEFINITIONS = [
    Sessions(timedelta(seconds=2)),
    Sessions(MICROSECOND, ("user_id",), {"is_bot": [False, None]}),
    Sessions(timedelta(seconds=3), ("platform", "user_id")),
]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 25).flatmap(lambda rows: st.lists(ROW, min_size=rows, max_size=rows)),
    st.integers(1, 12),
    st.sampled_from(DEFINITIONS),
    st.randoms(use_true_random=False),
)
def test_any_cut_order_and_merge_shape_equals_plain_python(rows, size, sessions, shuffle):
    expected = oracle(rows, sessions)
    whole = sessions_of([events(rows)], sessions)
    assert whole.to_pylist() == expected
    shuffle.shuffle(rows)
    parts = [partial(events(rows[i : i + size]), sessions) for i in range(0, len(rows) + 1, size)]
    while len(parts) > 1:
        taken = [
            parts.pop(shuffle.randrange(len(parts))) for _ in range(min(len(parts), shuffle.randint(2, 4)))
        ]
        parts.append(merge(taken, sessions))
    assert finish(parts[0], sessions).equals(whole)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> pa.RecordBatch:
    """Simulated events as they leave Enrich, those with a user."""
    simulation = simulate(4000, 5, span="3h", fault_rate=0)
    lines = b"".join(simulation).splitlines()
    now = datetime(2026, 1, 5, 16, tzinfo=UTC)
    rows = [
        {"raw": line, "origin": "f", "origin_position": n, "ingest_time": now} for n, line in enumerate(lines)
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=RAW_SCHEMA)
    definition = Definition(Key(tmp_path_factory.mktemp("sessions") / "key", create=True))
    for kernel in (*definition.before_dedupe("json"), *definition.after_dedupe()):
        batch = kernel(batch).accepted
    return batch.filter(batch["user_id"].is_valid())


SQL = """
WITH marked AS (
    SELECT *, coalesce(event_time - lag(event_time) OVER by_time > INTERVAL 10 MINUTE, true) AS new
    FROM events WINDOW by_time AS (PARTITION BY user_id ORDER BY event_time)
), numbered AS (
    SELECT *, count_if(new) OVER (PARTITION BY user_id ORDER BY event_time) AS number FROM marked
), sums AS (
    SELECT user_id, number, list({'currency': currency, 'revenue': revenue} ORDER BY currency NULLS LAST) AS revenues FROM (
        SELECT user_id, number, currency, CAST(sum(revenue) AS DECIMAL(38, 9)) AS revenue FROM numbered
        WHERE revenue IS NOT NULL GROUP BY ALL
    ) GROUP BY ALL
), sessions AS (
    SELECT user_id, number,
        epoch_us(min(event_time)) AS session_start,
        epoch_us(max(event_time)) AS session_end,
        count(*) AS events,
        count_if(event_type IN ('page_view', 'product_view')) AS page_views,
        count(DISTINCT regexp_extract(page_url, '^[^?#]*')) AS unique_pages,
        first(page_url ORDER BY event_time, event_id) FILTER (page_url IS NOT NULL) AS entry_page,
        last(page_url ORDER BY event_time, event_id) FILTER (page_url IS NOT NULL) AS exit_page,
        count_if(event_type = 'purchase') AS purchases,
        first(device_type ORDER BY event_time, event_id) FILTER (device_type IS NOT NULL) AS device_type,
        first(country ORDER BY event_time, event_id) FILTER (country IS NOT NULL) AS country,
        coalesce(first(channel ORDER BY event_time, event_id) FILTER (channel IS NOT NULL), 'direct') AS channel,
        coalesce(bool_or(is_bot), false) AS is_bot
    FROM numbered GROUP BY ALL
)
SELECT * EXCLUDE (number, revenues), (session_end - session_start) / 1e6 AS duration_seconds,
    page_views = 1 AND purchases = 0 AS bounce,
    coalesce(revenues, []) AS revenues,
    CASE WHEN len(revenues) = 1 THEN revenues[1].revenue END AS revenue,
    CASE WHEN len(revenues) = 1 THEN revenues[1].currency END AS currency
FROM sessions LEFT JOIN sums USING (user_id, number) ORDER BY user_id, session_start
"""


def test_simulated_events_equal_duckdb(simulated):
    sessions = Sessions(timedelta(minutes=10))
    generator = np.random.default_rng(3)
    order = pa.array(generator.permutation(simulated.num_rows))
    shuffled = simulated.take(order)
    found = sessions_of([shuffled.slice(i, 700) for i in range(0, shuffled.num_rows, 700)], sessions)
    table = pa.Table.from_batches([replace(simulated, {"channel": channels(simulated)})])
    connection = duckdb.connect()
    connection.register("events", table)
    expected = connection.sql(SQL).to_arrow_table()
    assert 300 < expected.num_rows == found.num_rows
    assert sum(found["events"].to_pylist()) == simulated.num_rows
    assert set(found.column_names) == set(expected.column_names)
    for name in found.column_names:
        values = found[name]
        if name in ("session_start", "session_end"):
            values = values.cast(pa.int64())
        assert values.to_pylist() == expected[name].to_pylist(), name
    assert len(set(found["channel"].to_pylist())) > 4
    assert {len(sums) for sums in found["revenues"].to_pylist()} > {0, 1}


@pytest.mark.parametrize(("more", "count"), [(-1, 1), (0, 1), (1, 2)])
def test_a_pause_of_the_gap_is_no_end_and_one_microsecond_more_is(more, count):
    later = EPOCH + MINUTES.gap + more * MICROSECOND
    batches = [events([event(0) | {"event_time": time}]) for time in (EPOCH, later)]
    for order in (batches, batches[::-1], [events([*b.to_pylist()]) for b in batches]):
        assert sessions_of(order)["events"].to_pylist() == [2 // count] * count
    whole = events([r for b in batches for r in b.to_pylist()])
    assert sessions_of([whole]).equals(sessions_of(batches))


def test_an_event_in_between_joins_two_runs_and_one_within_changes_none():
    far = [event(0), event(3000), event(1500, page_url="/b")]
    assert sessions_of([events(far[:2])])["events"].to_pylist() == [1, 1]
    assert sessions_of([events(far[:2]), events(far[2:])])["events"].to_pylist() == [3]
    runs = [events([event(0), event(1700), event(3400)]), events([event(1000)]), events([event(5200)])]
    assert sessions_of(runs)["events"].to_pylist() == [5]


def test_users_are_told_apart_where_their_times_overlap():
    rows = [event(second, user) for second in range(0, 9000, 900) for user in ("u", "v", None)]
    late = [event(20_000, "u"), event(-20_000, "v")]
    sessions = Sessions(by=("user_id", "platform"))
    rows = [row | {"platform": "web"} for row in [*rows, *late]]
    found = sessions_of([events(rows[i::4]) for i in range(4)], sessions)
    assert [(r["user_id"], r["events"]) for r in found.to_pylist()] == [
        ("u", 10),
        ("u", 1),
        ("v", 1),
        ("v", 10),
        (None, 10),
    ]


def test_ties_in_time_are_broken_by_the_id_and_then_by_the_value():
    rows = [
        event(0, event_id="b", page_url="/1", country="DE"),
        event(0, event_id="a", page_url="/2"),
        event(0, event_id=None, page_url="/3", country="FR"),
        event(0, event_id="a", page_url="/0", device_type="mobile"),
        event(0, event_id=None, page_url="/4", country="AT"),
    ]
    for cut in range(5):
        for some in (rows, rows[::-1]):
            (found,) = sessions_of([events(some[:cut]), events(some[cut:])]).to_pylist()
            picked = [found[n] for n in ("entry_page", "exit_page", "device_type", "country")]
            assert picked == ["/0", "/4", "mobile", "DE"]


def test_one_event_and_no_event():
    found = sessions_of([events([event(5)])])
    assert found.to_pylist() == oracle([event(5)], MINUTES)
    assert found["duration_seconds"].to_pylist() == [0]
    nothing = events([])
    assert sessions_of([nothing]).num_rows == sessions_of([nothing, nothing]).num_rows == 0
    assert sessions_of([nothing]).schema == sessions_of([nothing, nothing]).schema == found.schema
    assert sessions_of([nothing, events([event(5)]), nothing]).equals(found)


def test_types_of_the_result():
    schema = sessions_of([events([])], Sessions(by=("platform", "user_id"))).schema
    assert schema.names == ["platform", "user_id", *RESULTS]
    types = dict(zip(schema.names, schema.types, strict=True))
    assert types["platform"] == types["currency"] == types["device_type"] == CODE
    assert types["country"] == types["channel"] == CODE
    assert types["user_id"] == types["entry_page"] == types["exit_page"] == pa.string()
    assert types["session_start"] == types["session_end"] == TIME
    assert types["duration_seconds"] == pa.float64()
    assert {types[n] for n in ("events", "page_views", "unique_pages", "purchases")} == {pa.int64()}
    assert types["revenue"] == MONEY
    assert types["revenues"] == pa.list_(pa.struct([("currency", pa.string()), ("revenue", MONEY)]))
    assert types["bounce"] == types["is_bot"] == pa.bool_()


def test_encodings_slices_and_repeated_dictionary_values_are_the_same_sessions():
    rows = [
        event(i, u, page_url=p, event_type="page_view", platform="web", country=p)
        for i, (u, p) in enumerate([("a", "/x"), (None, "/y"), ("b", None), ("a", "/x?q"), (None, None)])
    ]
    batch, sessions = events(rows), Sessions(by=("user_id", "platform"))
    expected = sessions_of([batch], sessions)
    assert expected["unique_pages"].to_pylist() == [1, 0, 1]
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, None], pa.int32()), ["a", None, "b", "a"])
    encoded = [c.dictionary_encode() if c.type == pa.string() else c for c in batch.columns]
    for variant in (
        replace(batch, {"user_id": codes}),
        pa.RecordBatch.from_arrays(encoded, names=batch.schema.names),
        pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names),
        events([rows[0], *rows]).slice(1),
    ):
        assert sessions_of([variant], sessions).equals(expected)
        assert sessions_of([variant.slice(0, 2), variant.slice(2)], sessions).equals(expected)


def test_money_of_several_currencies_is_never_added():
    def revenues(*pairs):
        rows = [MONEY_ROW | {"revenue": Decimal(r), "currency": c} for r, c in pairs]
        for batches in ([events(rows)], [events([row]) for row in rows]):
            (found,) = sessions_of(batches).to_pylist()
            assert [(s["currency"], s["revenue"]) for s in found["revenues"]] == sorted(
                ((s["currency"], s["revenue"]) for s in found["revenues"]),
                key=lambda s: (s[0] is None, s[0]),
            )
        return found["revenue"], found["currency"], len(found["revenues"])

    assert revenues((3, "EUR"), (-1, "EUR")) == (Decimal(2), "EUR", 1)
    assert revenues((3, "EUR"), (0, "USD")) == (None, None, 2)
    assert revenues((3, None), (4, None)) == (Decimal(7), None, 1)
    assert revenues((3, None), (4, "EUR"), (5, "CHF")) == (None, None, 3)
    assert sessions_of([events([MONEY_ROW | {"currency": "EUR"}])])["revenues"].to_pylist() == [[]]


def test_sums_to_the_last_of_38_digits_and_not_beyond_wherever_batches_are_cut():
    rows = [
        MONEY_ROW | {"revenue": v, "currency": "EUR"} for v in (BIG, BIG, BIG.copy_negate(), BIG, -2 * BIG)
    ]
    rows[4]["revenue"] = BIG.copy_negate()
    for batches in ([events(rows)], [events([r]) for r in rows], [events(rows[:2]), events(rows[2:])]):
        assert sessions_of(batches)["revenue"].to_pylist() == [BIG]
    tiny = MONEY_ROW | {"revenue": Decimal("0.000000001"), "currency": "EUR"}
    for batches in ([events([rows[0], tiny])], [events([rows[0]]), events([tiny])], [events(rows[:1] * 200)]):
        with pytest.raises(OverflowError, match="more than 38 digits"):
            sessions_of(batches)


def test_times_at_the_ends_of_the_scale():
    low, high = -(2**63) + 1, 2**63 - 1
    times = pa.array([low, high, low + 1, high - 1], pa.int64()).cast(TIME)
    batch = replace(events([event(0)] * 4), {"event_time": times})
    for batches in ([batch], [batch.slice(i, 1) for i in range(4)]):
        found = sessions_of(batches)
        assert found["session_start"].cast(pa.int64()).to_pylist() == [low, high - 1]
        assert found["duration_seconds"].to_pylist() == [1e-6, 1e-6]


def test_a_partial_stays_small_and_crosses_a_shuffle():
    rows = [event(i, page_url=f"/{i % 1000}", event_type="page_view") for i in range(3000)]
    part = partial(events(rows), MINUTES)
    assert part.num_rows == 1
    assert part.nbytes < 1000 * 16 + 1000
    merged = merge([part, partial(events(rows[:700]), MINUTES)], MINUTES)
    assert merged.nbytes <= part.nbytes
    coder = RecordBatchCoder()
    both = merge([merged, partial(events([event(0, "v", country="DE")]), MINUTES)], MINUTES)
    again = [coder.decode(coder.encode(both.slice(i, 1))) for i in (0, 1)]
    assert finish(merge(again, MINUTES), MINUTES).equals(finish(both, MINUTES))
    assert finish(both, MINUTES)["unique_pages"].to_pylist() == [1000, 0]


def test_hashes_that_collide_in_64_bits_stay_distinct(monkeypatch):
    monkeypatch.setattr(
        "headrace.transforms.session_partials.xxh3_128_digest",
        lambda text: bytes(8) + len(text).to_bytes(4, "big") + text[:4].ljust(4),
    )
    rows = [event(0, user, page_url=page) for user in "ab" for page in ("/x", "/xx", "/y")]
    found = sessions_of([events(rows), events(rows[:4]), events(rows[3:])])
    assert found["unique_pages"].to_pylist() == [3, 3]


def test_keys_of_other_types_and_columns_all_null_in_one_batch():
    sessions = Sessions(by=("http_status", "tier", "member", "day"))
    rows = [event(i, http_status=s) for i, s in enumerate((200, None, 404))]
    more = {"member": pa.array([True, False, None]), "day": pa.array([None, 3, 3], pa.date32())}
    one = replace(events(rows), {"tier": pa.array(["x", None, None])} | more)
    none = replace(events(rows), {"tier": pa.nulls(3)} | more)
    found = sessions_of([one, none], sessions).to_pylist()
    assert [(r["http_status"], r["tier"], r["member"], r["events"]) for r in found] == [
        (200, "x", True, 1),
        (200, None, True, 1),
        (404, None, None, 2),
        (None, None, False, 2),
    ]
    assert sessions_of([none], sessions).num_rows == 3


def test_many_key_columns_are_told_apart_without_overflow():
    names = tuple(f"c{i}" for i in range(8))
    values = {n: pa.array([f"{j}" for j in range(300)]) for n in names}
    batch = replace(events([event(0)] * 300), values)
    found = sessions_of([batch, batch], Sessions(by=names))
    assert found["events"].to_pylist() == [2] * 300


def test_rows_that_where_does_not_take_are_left_out_even_without_time():
    sessions = Sessions(where={"user_id": "*"})
    rows = [event(0), event(1, None), event(2, None) | {"event_time": None}]
    assert sessions_of([events(rows)], sessions)["events"].to_pylist() == [1]
    assert sessions_of([events(rows[1:])], sessions).num_rows == 0


def test_rows_without_time_or_key_are_refused():
    for row in (event(0) | {"event_time": None}, event(0, None)):
        with pytest.raises(ValueError, match="no event_time, or null in all key columns"):
            partial(events([row]), MINUTES)


def test_columns_that_can_not_be_used_are_refused():
    batch = events([event(0)])
    with pytest.raises(ConfigError, match=r"sessions need \['revenue'\].*Enrich adds revenue"):
        partial(batch.drop_columns(["revenue"]), MINUTES)
    with pytest.raises(ConfigError, match="revenue is double"):
        partial(replace(batch, {"revenue": pa.array([1.5])}), MINUTES)
    with pytest.raises(ConfigError, match="by='price': the column is decimal"):
        partial(replace(batch, {"price": pa.array([Decimal(1)], MONEY)}), Sessions(by=("price",)))
    with pytest.raises(ConfigError, match="never has the value 7"):
        partial(batch, Sessions(where={"user_id": 7}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": timedelta(0)}, "gap=.*above zero"),
        ({"gap": timedelta.max}, "of at most 3650 days"),
        ({"gap": 1800}, r"gap=1800: must be a timedelta.*timedelta\(minutes=30\)"),
        ({"by": "user_id"}, r"by='user_id': must be a tuple.*\('user_id',\)"),
        ({"by": ()}, r"by=\(\): name the columns"),
        ({"by": ("user_id", "user_id")}, r"\['user_id'\] would be columns of a session twice"),
        ({"by": ("user_id", "country")}, r"\['country'\] would be columns of a session twice"),
        ({"by": ("marks",)}, r"\['marks'\] would be"),
        ({"where": "is_bot"}, "where='is_bot': write columns and their values"),
        ({"where": (("a", ("x",)), ("a", ("y",)))}, "each column once"),
        ({"where": {"is_bot": []}}, r"where\.is_bot is empty"),
    ],
)
def test_bad_definitions_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Sessions(**arguments)


def test_a_definition_is_plain_data():
    first = Sessions(where={"is_bot": [False, None], "platform": "w*"})
    again = Sessions(where=first.where)
    assert first == again and hash(first) == hash(again)
    assert first.columns().count("is_bot") == 1 and first.columns()[-2:] == ["user_id", "platform"]
