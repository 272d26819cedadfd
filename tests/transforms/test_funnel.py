"""Funnels against ClickHouse's algorithm event by event, all chains enumerated, and DuckDB."""

import doctest
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import combinations

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    Sessions,
    SlidingWindows,
    TimestampedValue,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, ENRICHED_SCHEMA, RAW, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms import funnel as module
from headrace.transforms import funnel_definitions
from headrace.transforms.batches import plain, replace
from headrace.transforms.funnel import Funnel, funnel_outcomes, funnel_summary, joined
from headrace.transforms.funnel_definitions import FunnelSteps

from .collect import Batches, collect

START = datetime(2024, 5, 1, tzinfo=UTC)
STEPS = {
    "a": {"event_type": ["a", "ab", "abc"]},
    "b": {"event_type": ["b", "ab", "abc"]},
    "c": {"event_type": ["c", "abc"]},
}
WITHIN = timedelta(seconds=5)
COLUMNS = ("event_id", "event_time", "user_id", "session_id", "event_type", "page_url", "country", "is_bot")


def events(rows: list[dict], **more: pa.DataType) -> pa.RecordBatch:
    schema = pa.schema(
        [*(ENRICHED_SCHEMA.field(n) for n in COLUMNS), *(pa.field(n, t) for n, t in more.items())]
    )
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def row(user: str | None, second: float, type_: str, id_: str = "", **more: object) -> dict:
    time = START + timedelta(seconds=second)
    return {
        "user_id": user,
        "event_time": time,
        "event_type": type_,
        "event_id": id_ or f"{second}{type_}",
        **more,
    }


def history(types: str, **more: object) -> list[dict]:
    """One event a second of one user; a space is a second without."""
    return [row("u", i, t, **more) for i, t in enumerate(types) if t != " "]


def levels(batch: pa.RecordBatch, funnel: FunnelSteps) -> dict[str, int]:
    found = funnel_outcomes(batch, funnel)
    return dict(zip(found["user_id"].to_pylist(), found["level"].to_pylist(), strict=True))


def level(types: str, **arguments: object) -> int:
    found = levels(events(history(types)), FunnelSteps(STEPS, WITHIN, **arguments))
    return found.get("u", 0)


def steps_of(event: dict) -> list[int]:
    return [k for k, wanted in enumerate(STEPS.values()) if event["event_type"] in wanted["event_type"]]


def window_funnel_once(rows: list[dict], within: timedelta) -> int:
    """windowFunnel with 'strict_once': event by event, all sequences so far are kept with the events they are made of."""
    sequences: list[list[tuple[datetime, list[int]]]] = [[] for _ in STEPS]
    for number, event in enumerate(rows):
        for k in steps_of(event):
            if k == 0:
                sequences[0].append((event["event_time"], [number]))
                continue
            for first, path in list(sequences[k - 1]):
                if event["event_time"] <= first + within and number not in path:
                    sequences[k].append((first, [*path, number]))
                    if k + 1 == len(STEPS):
                        return len(STEPS)
    return max((k + 1 for k, found in enumerate(sequences) if found), default=0)


def window_funnel_strict_order(rows: list[dict], within: timedelta) -> int:
    """windowFunnel with 'strict_order', of events that are one step at most."""
    firsts: list[datetime | None] = [None for _ in STEPS]
    entered = False
    for event in rows:
        steps = steps_of(event)
        if not steps:
            if entered:
                break
            continue
        (k,) = steps
        if k == 0:
            firsts[0] = event["event_time"]
            entered = True
        elif firsts[k - 1] is None:
            if entered:
                return firsts.index(None)
        elif event["event_time"] <= firsts[k - 1] + within:
            firsts[k] = firsts[k - 1]
            if k + 1 == len(STEPS):
                return len(STEPS)
    return max((k + 1 for k, first in enumerate(firsts) if first is not None), default=0)


def best_chain(rows: list[dict], funnel: FunnelSteps) -> list[dict]:
    """Enumerates all chains of one user's rows, which are in order."""
    best: tuple | None = None
    sessions = defaultdict(list)
    for place, event in enumerate(rows):
        sessions[event[funnel.session] if funnel.session else None].append((place, event))
    for members in sessions.values():
        for length in range(1, len(STEPS) + 1):
            for chosen in combinations(range(len(members)), length):
                chain = [members[i] for i in chosen]
                if any(k not in steps_of(event) for k, (_, event) in enumerate(chain)):
                    continue
                if chain[-1][1]["event_time"] - chain[0][1]["event_time"] > funnel.within:
                    continue
                if funnel.order == "strict" and chosen[-1] - chosen[0] != length - 1:
                    continue
                places = [place for place, _ in chain]
                rank = (length, -places[-1], places[-2::-1])
                if best is None or rank > best[0]:
                    best = (rank, [event for _, event in chain])
    return best[1] if best else []


EVENT = st.tuples(
    st.sampled_from("uv"),
    st.integers(0, 14),
    st.sampled_from(["a", "b", "c", "ab", "abc", "x"]),
    st.integers(0, 99),
    st.sampled_from([1, 2]),
    st.sampled_from(["DE", "FR", None]),
)


def rows_of(drawn: list[tuple]) -> list[dict]:
    names = ("session_number", "country")
    return [row(u, s, t, f"{i:02}", **dict(zip(names, more, strict=True))) for u, s, t, i, *more in drawn]


def in_order(rows: list[dict]) -> dict[str, list[dict]]:
    users = defaultdict(list)
    for event in sorted(rows, key=lambda r: (r["event_time"], r["event_id"])):
        users[event["user_id"]].append(event)
    return users


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENT, max_size=14, unique_by=lambda e: e[3]))
def test_loose_levels_are_those_of_window_funnel(drawn):
    rows = rows_of(drawn)
    expected = {u: window_funnel_once(own, WITHIN) for u, own in in_order(rows).items()}
    found = levels(events(rows, session_number=pa.int64()), FunnelSteps(STEPS, WITHIN))
    assert found == {u: level for u, level in expected.items() if level}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(EVENT, max_size=10, unique_by=lambda e: e[3]),
    st.sampled_from(["loose", "strict"]),
    st.sampled_from([None, "session_number"]),
    st.randoms(use_true_random=False),
)
def test_outcomes_are_the_best_of_all_chains_in_any_order(drawn, order, session, shuffle):
    rows = rows_of(drawn)
    funnel = FunnelSteps(STEPS, WITHIN, order, session=session, group_by=("country",))
    expected = []
    for user, own in sorted(in_order(rows).items()):
        chain = best_chain(own, funnel)
        times = [e["event_time"] for e in chain] + [None] * (len(STEPS) - len(chain))
        if chain:
            outcome = {"user_id": user, "country": chain[0]["country"], "level": len(chain)}
            expected.append(outcome | {"times": dict(zip(STEPS, times, strict=True))})
    batch = events(rows, session_number=pa.int64())
    assert funnel_outcomes(batch, funnel).to_pylist() == expected
    shuffle.shuffle(rows)
    again = funnel_outcomes(events(rows, session_number=pa.int64()), funnel)
    assert again.equals(funnel_outcomes(batch, funnel))


@settings(max_examples=100, deadline=None)
@given(st.permutations("abcxxxx"), st.integers(0, 7), st.lists(st.integers(0, 4), min_size=7, max_size=7))
def test_where_no_step_happens_twice_strict_is_windows_funnels_strict_order(types, size, pauses):
    seconds = [sum(pauses[: i + 1]) for i in range(size)]
    rows = [row("u", s, t, f"{i}") for i, (s, t) in enumerate(zip(seconds, types, strict=False))]
    expected = window_funnel_strict_order(rows, WITHIN)
    assert levels(events(rows), FunnelSteps(STEPS, WITHIN, "strict")).get("u", 0) == expected


@pytest.mark.parametrize(
    ("types", "loose", "strict"),
    [
        ("abc", 3, 3),
        ("axbxc", 3, 1),
        ("abxc", 3, 2),
        ("xabc", 3, 3),
        ("abcx", 3, 3),
        ("aabc", 3, 3),
        ("abbc", 3, 2),
        ("abac", 3, 2),
        ("axabc", 3, 3),
        ("abxabc", 3, 3),
        ("cba", 1, 1),
        ("bc", 0, 0),
        ("acb", 2, 1),
        ("ab   c", 3, 3),
        ("ab    c", 2, 2),
        ("a     bc", 1, 1),
        ("a   a bc", 3, 3),
        ("", 0, 0),
    ],
)
def test_what_lies_between_two_steps(types, loose, strict):
    assert (level(types), level(types, order="strict")) == (loose, strict)


def test_within_counts_to_its_last_microsecond():
    for more, expected in ((0, 2), (1, 1)):
        late = row("u", 0, "b") | {"event_time": START + WITHIN + timedelta(microseconds=more)}
        assert levels(events([row("u", 0, "a"), late]), FunnelSteps(STEPS, WITHIN)) == {"u": expected}


def test_one_event_is_never_two_steps_but_any_of_them():
    assert levels(events([row("u", 0, "abc")]), FunnelSteps(STEPS, WITHIN)) == {"u": 1}
    rows = [row("u", 0, "abc", str(i)) for i in range(3)]
    assert levels(events(rows[:2]), FunnelSteps(STEPS, WITHIN)) == {"u": 2}
    assert levels(events(rows), FunnelSteps(STEPS, WITHIN, "strict")) == {"u": 3}


def test_events_of_one_time_are_in_the_order_of_their_ids():
    funnel = FunnelSteps(STEPS, WITHIN)
    assert levels(events([row("u", 0, "a", "1"), row("u", 0, "b", "2")]), funnel) == {"u": 2}
    assert levels(events([row("u", 0, "a", "2"), row("u", 0, "b", "1")]), funnel) == {"u": 1}


def test_copies_and_null_ids_do_not_depend_on_the_order_of_rows():
    rows = [row("u", 0, t, country=c) | {"event_id": i} for t in "abx" for c in "DF" for i in ("1", None)]
    funnel = FunnelSteps(STEPS, WITHIN, "strict", group_by=("country",))
    expected = funnel_outcomes(events(rows), funnel)
    for shift in range(len(rows)):
        assert funnel_outcomes(events(rows[shift:] + rows[:shift]), funnel).equals(expected)


def test_the_best_chain_ends_first_and_then_starts_latest():
    found = funnel_outcomes(events(history("aab bc ab")), FunnelSteps(dict(list(STEPS.items())[:2]), WITHIN))
    (outcome,) = found.to_pylist()
    seconds = {n: (t - START).total_seconds() for n, t in outcome["times"].items()}
    assert seconds == {"a": 1, "b": 2}


def test_a_chain_lies_in_one_session_of_one_user():
    rows = [row("u", 0, "a", s=1), row("u", 1, "b", s=2), row("u", 2, "b", s=1), row("v", 3, "c", s=1)]
    batch = events(rows, s=pa.int32())
    assert levels(batch, FunnelSteps(STEPS, WITHIN)) == {"u": 2}
    assert levels(batch, FunnelSteps(STEPS, WITHIN, "strict", session="s")) == {"u": 2}
    assert levels(batch.slice(0, 2), FunnelSteps(STEPS, WITHIN, session="s")) == {"u": 1}


def test_keys_of_several_columns_may_be_null_in_part():
    rows = [
        row("u", 0, "a", session_id="1"),
        row(None, 1, "b", session_id="1"),
        row(None, 0, "a", session_id="1"),
    ]
    found = funnel_outcomes(events(rows), FunnelSteps(STEPS, WITHIN, by=("user_id", "session_id")))
    assert [(o["user_id"], o["session_id"], o["level"]) for o in found.to_pylist()] == [
        ("u", "1", 1),
        (None, "1", 2),
    ]


def test_encodings_slices_and_times_far_apart_are_the_same_users():
    rows = [*history("abc"), row("v", 0, "a"), row("w", -(10**9), "a"), row("w", 10**10, "b")]
    funnel = FunnelSteps(STEPS, WITHIN, group_by=("country",))
    batch = events(rows)
    expected = funnel_outcomes(batch, funnel)
    assert expected["level"].to_pylist() == [3, 1, 1]
    plains = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names)
    users = batch["user_id"].dictionary_encode()
    large = batch["event_id"].cast(pa.large_string())
    for variant in (
        plains,
        replace(batch, {"user_id": users, "event_id": large}),
        events([rows[0], *rows]).slice(1),
    ):
        assert funnel_outcomes(variant, funnel).equals(expected)


def test_types_of_the_results():
    funnel = FunnelSteps(STEPS, WITHIN, group_by=("country", "is_bot"))
    for rows in ([], history("ab")):
        found = funnel_outcomes(events(rows), funnel)
        times = pa.struct([(n, TIME) for n in STEPS])
        fields = [("user_id", pa.string()), ("country", CODE), ("is_bot", pa.bool_()), ("level", pa.int32())]
        assert found.schema.equals(pa.schema([*fields, ("times", times)]))
        assert funnel_summary(found, funnel).schema.equals(
            pa.schema(
                [
                    ("country", CODE),
                    ("is_bot", pa.bool_()),
                    ("step", pa.int32()),
                    ("name", pa.string()),
                    ("users", pa.int64()),
                    ("conversion", pa.float64()),
                    ("step_conversion", pa.float64()),
                    ("drop_off", pa.int64()),
                    ("median_seconds", pa.float64()),
                ]
            )
        )


def test_a_summary_by_hand():
    rows = [row(u, s, t) for u in "pqrs" for s, t in ((0, "a"), (1, "b"))]
    rows += [row("p", 4, "c"), row("q", 4.5, "c"), row("t", 0, "a")]
    funnel = FunnelSteps(STEPS, WITHIN)
    assert funnel_summary(funnel_outcomes(events(rows), funnel), funnel).to_pylist() == [
        _line(1, "a", 5, 1.0, None, 1, None),
        _line(2, "b", 4, 0.8, 0.8, 2, 1.0),
        _line(3, "c", 2, 0.4, 0.5, 0, 3.25),
    ]
    nobody = funnel_summary(funnel_outcomes(events([]), funnel), funnel).to_pylist()
    assert nobody == [_line(k + 1, n, 0, None, None, 0, None) for k, n in enumerate(STEPS)]


DUCK = duckdb.connect()


def _line(*values: object) -> dict:
    return dict(zip(funnel_definitions.SUMMARY, values, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(0, 14),
            st.sampled_from("abcx"),
            st.sampled_from(["DE", "FR", None]),
        ),
        max_size=60,
    )
)
def test_a_summary_is_what_duckdb_counts(drawn):
    rows = [row(f"u{u}", s, t, f"{i}", country=c) for i, (u, s, t, c) in enumerate(drawn)]
    funnel = FunnelSteps(STEPS, WITHIN, group_by=("country",))
    outcomes = funnel_outcomes(events(rows), funnel)
    found = funnel_summary(outcomes, funnel)
    flat = outcomes.to_struct_array().flatten()[-1].flatten()
    names = ["country", "level", "a", "b", "c"]
    columns = [plain(outcomes["country"]), outcomes["level"], *(t.cast(pa.int64()) for t in flat)]
    DUCK.register("o", pa.table(columns, names=names))
    expected = []
    for k, (name, before) in enumerate([("a", "a"), ("b", "a"), ("c", "b")], 1):
        expected += DUCK.sql(
            f"""select country, {k} step, '{name}' as name, count_if(level >= {k}) users,
                count_if(level >= {k}) / count(*) conversion,
                case when {k} > 1 then count_if(level >= {k}) / nullif(count_if(level >= {k - 1}), 0) end step_conversion,
                case when {k} < 3 then count_if(level = {k}) else 0 end drop_off,
                case when {k} > 1 then median({name} - {before}) / 1e6 end median_seconds
                from o group by country"""
        ).fetchall()
    key = lambda r: (r[0] is None, r[0] or "", r[1])  # noqa: E731
    assert [tuple(r.values()) for r in found.to_pylist()] == sorted(expected, key=key)


ROWS = [
    row(f"u{i}", 600 * (i % 3) + k, t, country="DE" if i % 2 else "FR")
    for i in range(12)
    for k, t in enumerate("abc"[: 1 + i % 3])
] + [row("x", i, "x", f"x{i}") for i in range(5)]


def summaries(elements: list) -> list[dict]:
    return [r for e in elements for r in e.value.to_pylist()]


@pytest.mark.parametrize(("order", "shards"), [("loose", 1), ("strict", 5)])
def test_the_transform_is_the_kernel_however_batches_are_cut(order, shards):
    bad = [
        row(None, 0, "a"),
        row("u0", 0, "a", "late") | {"event_time": None},
        row("u0", 0, "a", "none", session_id=None),
    ]
    rows = [r | {"session_id": "s"} for r in ROWS] + bad
    batches = [events(rows[i::4]) for i in range(4)]

    def build(pipeline):
        funnel = Funnel(STEPS, WITHIN, order=order, session="session_id", group_by=["country"], shards=shards)
        return (pipeline | Batches([*batches, events([])]) | funnel)._asdict()

    found = collect(build)
    definition = FunnelSteps(STEPS, WITHIN, order, session="session_id", group_by=("country",))
    whole = funnel_outcomes(events(rows[: len(ROWS)]), definition)
    assert summaries(found["accepted"]) == funnel_summary(whole, definition).to_pylist()
    lost = summaries(found["rejected"])
    assert sorted((r["stage"], r["reason"], r["event_id"]) for r in lost) == [
        ("funnel", "no_key", "0a"),
        ("funnel", "no_session", "none"),
        ("funnel", "no_time", "late"),
    ]


def test_rows_are_in_the_windows_of_their_own_times():
    batches = [(events(ROWS[:20]), START.timestamp()), (events(ROWS[20:]), START.timestamp())]

    def build(pipeline):
        read = pipeline | Batches(batches) | beam.WindowInto(FixedWindows(600, 1))
        return (read | Funnel(STEPS, WITHIN, shards=3))._asdict()

    found = collect(build)["accepted"]
    assert sorted(e.window.start - START.timestamp() for e in found) == [-599, 1, 601, 1201]
    for element in found:
        assert element.micros == element.window.max_timestamp().micros
        inside = [r for r in ROWS if element.window.start <= r["event_time"].timestamp() < element.window.end]
        definition = FunnelSteps(STEPS, WITHIN)
        expected = funnel_summary(funnel_outcomes(events(inside), definition), definition)
        assert element.value.to_pylist() == expected.to_pylist()


def test_a_stream_in_windows_gives_each_window_once():
    start = START.timestamp()
    stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(int)).advance_watermark_to(start)
    for i in range(0, 2400, 300):
        stream = stream.add_elements([TimestampedValue(i, start + i)]).advance_watermark_to(start + i + 1)
    stream = stream.advance_watermark_to_infinity()

    def build(pipeline):
        rows = lambda i: events([row(f"u{i % 900}", i, "a"), row(f"u{i % 900}", i + 1, "b")])  # noqa: E731
        batches = pipeline | stream | beam.Map(rows).with_output_types(pa.RecordBatch)
        windowed = batches | beam.WindowInto(FixedWindows(600), allowed_lateness=3600)
        return (windowed | Funnel(STEPS, WITHIN, shards=2))._asdict()

    found = collect(build, stream=True)["accepted"]
    users = {float(e.window.start) - start: e.value["users"].to_pylist() for e in found}
    assert len(found) == 4
    assert users == {600 * i: [2, 2, 0] for i in range(4)}


def test_what_travels_is_narrow():
    batch = events([row("u", 0, "a", page_url="long"), row("u", 1, "x")])
    rows = module._narrow(batch, FunnelSteps(STEPS, group_by=("country",)))
    assert rows.schema.names == ["event_time", "event_id", "user_id", "country", "_steps"]
    assert rows["_steps"].to_pylist() == [1]


def test_rows_that_are_of_no_user_are_refused_by_the_kernel_and_hidden_if_raw():
    for wrong in (row(None, 0, "a"), row("u", 0, "a") | {"event_time": None}):
        with pytest.raises(ValueError, match="1 rows have no event_time, key or session"):
            funnel_outcomes(events([row("u", 0, "a"), wrong]), FunnelSteps(STEPS))
    raw = replace(events([row("token", 0, "a") | {"event_time": None}]), {RAW: pa.array([b"x"])})
    assert module.split_rows(raw, "funnel", ("user_id",)).rejected["user_id"].to_pylist() == [None]


def test_a_missing_column_is_refused():
    with pytest.raises(ConfigError, match=r"a funnel over \['tier'\]: the batches have no such column"):
        funnel_outcomes(events(history("a")), FunnelSteps(STEPS, group_by=("tier",)))
    with pytest.raises(ConfigError, match=r"funnel over \['account'\]"):
        funnel_outcomes(events(history("a")), FunnelSteps(STEPS, by=("account",)))


def test_columns_of_nulls_join_others():
    one, none = (
        pa.RecordBatch.from_pydict({"n": pa.array([v], t)}) for v, t in ((1, pa.int64()), (None, pa.null()))
    )
    assert joined([none, one])["n"].to_pylist() == [None, 1]
    assert joined([one.slice(1), one.slice(1)]).num_rows == 0


@pytest.mark.parametrize(
    ("windowfn", "message"),
    [
        (GlobalWindows(), r"GlobalWindow would wait for ever.*WindowInto\(FixedWindows"),
        (Sessions(60), "in Sessions: users are followed in"),
        (SlidingWindows(60, 30), "in SlidingWindows: users are followed in"),
    ],
    ids=["global", "sessions", "sliding"],
)
def test_unbounded_input_whose_results_would_be_wrong_is_refused(windowfn, message):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    numbers = pipeline | test_stream.TestStream(coder=beam.coders.registry.get_coder(int))
    batches = numbers | beam.Map(lambda _: events([])).with_output_types(pa.RecordBatch)
    with pytest.raises(ConfigError, match=message):
        batches | beam.WindowInto(windowfn) | Funnel(STEPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": {}}, "steps={}: must be 1 to 32 names"),
        ({"steps": {f"s{i}": {"event_type": "a"} for i in range(33)}}, "must be 1 to 32 names"),
        ({"steps": ["a"]}, r"steps=\['a'\]: must be"),
        ({"steps": {"": {"event_type": "a"}}}, "must be text"),
        ({"steps": {"a": {}}}, r"steps\['a'\]={}: any event would be this step"),
        ({"steps": {"a": {"event_type": []}}}, r"steps\.a\.event_type is empty"),
        ({"within": timedelta(0)}, "within=.*above zero"),
        ({"within": 60}, "within=60"),
        ({"order": "exact"}, "order='exact': must be 'loose' or 'strict'"),
        ({"by": "user_id"}, r"by='user_id': must be a tuple.*\('user_id',\)"),
        ({"by": ()}, "by=.*name at least one"),
        ({"session": ""}, "session=''"),
        ({"group_by": ("user_id",)}, r"\['user_id'\] would be columns twice"),
        ({"group_by": ("step",)}, r"\['step'\] would be columns twice"),
        ({"by": ("level",)}, r"\['level'\] would be columns twice"),
        ({"shards": 0}, r"Funnel\(shards=0\).*from 1 to 1024"),
        ({"shards": True}, r"Funnel\(shards=True\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Funnel(**{"steps": STEPS, **arguments})


def test_documented_examples_run():
    assert doctest.testmod(funnel_definitions).attempted == 1
    assert doctest.testmod(module, raise_on_error=True).attempted == 1
