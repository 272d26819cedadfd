"""Access-log lines: the columnar reading and the row-wise one agree, and what is no such line is quarantined."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import PENDING, VALID_SCHEMA
from headrace.schemas.registry import Registry
from headrace.transforms.batches import plain, replace
from headrace.transforms.decode_weblog import WeblogKernel, record_of
from headrace.transforms.keys import Key
from headrace.transforms.validate import ValidateKernel

from .documents import raw_batch

COMMON = '203.0.113.7 - bob [17/May/2015:10:05:03 +0200] "GET /a.html?x=1 HTTP/1.1" 200 512'
COMBINED = COMMON + ' "http://example.com/" "Mozilla/5.0 (X11; \\"odd\\")"'


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    key = Key(tmp_path_factory.mktemp("key") / "key", create=True)
    decode, validate = WeblogKernel(key, Registry.default().get("weblog")), ValidateKernel(key)
    decode.setup()
    validate.setup()
    return decode, validate


def test_a_line_becomes_an_event(kernels):
    (row,) = kernels[0](raw_batch([COMBINED.encode()])).accepted.to_pylist()
    assert row["event_time"].isoformat() == "2015-05-17T08:05:03+00:00"
    assert row["event_date"].isoformat() == "2015-05-17"
    assert (row["event_type"], row["http_method"], row["page_url"]) == ("page_view", "GET", "/a.html?x=1")
    assert (row["http_status"], row["response_bytes"], row["ip_address"], row["user_id"]) == (
        200,
        512,
        "203.0.113.7",
        "bob",
    )
    assert row["user_agent"] == 'Mozilla/5.0 (X11; \\"odd\\")'
    assert json.loads(row["properties"]) == {"protocol": "HTTP/1.1"}
    assert row["id_generated"] and row["schema"] == "weblog:1.0.0" and row["_pending"] is False


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (COMMON.replace("/a.html?x=1", "/style.css?v=2"), "asset"),
        (COMMON.replace("GET", "POST"), "request"),
        (COMMON.replace(" 200 ", " 404 "), "http_error"),
        (COMMON.replace("GET /a.html?x=1 HTTP/1.1", "\\x16\\x03\\x01"), "request"),
        (COMMON.replace("512", "-"), "page_view"),
    ],
)
def test_kinds_of_requests(kernels, line, expected):
    (row,) = kernels[0](raw_batch([line.encode()])).accepted.to_pylist()
    assert row["event_type"] == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        COMBINED[:-1],
        COMMON.replace("[", ""),
        COMMON.replace("200", "2"),
        COMMON.replace("512", "many"),
    ],
)
def test_what_is_no_log_line_is_rejected(kernels, line):
    out = kernels[0](raw_batch([line.encode()]))
    assert plain(out.rejected.column("reason")).to_pylist() == ["malformed_line"]
    assert "Combined Log Format" in out.rejected.column("message")[0].as_py()


def test_a_time_that_does_not_exist_is_invalid(kernels):
    decode, validate = kernels
    out = validate(decode(raw_batch([COMMON.replace("17/May", "31/Feb").encode()])).accepted)
    (row,) = out.rejected.to_pylist()
    assert (row["stage"], row["reason"], row["pointer"]) == ("validate", "format", "/timestamp")


def test_latin_1_is_kept(kernels):
    decode, validate = kernels
    line = COMMON.replace("/a.html", "/caf\xe9").encode("latin-1")
    out = validate(decode(raw_batch([line, COMMON.encode()])).accepted)
    assert out.accepted.column("page_url").to_pylist() == ["/café?x=1", "/a.html?x=1"]


PARTS = st.tuples(
    st.sampled_from(["203.0.113.7", "2001:db8::1", "host.example", "-"]),
    st.sampled_from(["-", "bob", '"a b"']),
    st.sampled_from(
        [
            "17/May/2015:10:05:03 +0000",
            "29/Feb/2024:23:59:59 -0730",
            "29/Feb/2023:00:00:00 +0000",
            "01/Foo/2015:00:00:00 +0000",
        ]
    ),
    st.sampled_from(
        ["GET / HTTP/1.0", "HEAD /x.png", "-", "", 'GET /\\"q\\" HTTP/1.1', "get /lower HTTP/1.1"]
    ),
    st.sampled_from(["200", "304", "500", "099", "999"]),
    st.sampled_from(["-", "0", "123456789012345678"]),
    st.sampled_from(["", ' "-" "-"', ' "http://r/" "agent"', ' "" ""']),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=8))
def test_fast_and_slow_reading_agree(kernels, parts):
    decode, validate = kernels
    lines = [f'{h} - {u} [{t}] "{r}" {s} {b}{tail}'.encode() for h, u, t, r, s, b, tail in parts]
    decoded = decode(raw_batch(lines))
    assert decoded.accepted.num_rows == len(lines)
    fast = validate(decoded.accepted)
    slow = validate(replace(decoded.accepted, {PENDING: pa.array([True] * len(lines))}))
    for name in VALID_SCHEMA.names:
        assert (
            plain(fast.accepted.column(name)).to_pylist() == plain(slow.accepted.column(name)).to_pylist()
        ), name


def test_record_of_reads_nothing_into_a_missing_part():
    record = record_of(COMMON.encode())
    assert record["referrer"] is None and record["user_agent"] is None and record["ident"] is None
