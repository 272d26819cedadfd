"""MaskPii: what each kind becomes, JSON documents, and nothing else touched."""

import ipaddress
import json
import pickle
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, EVENT_SCHEMA, VALID_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.distinct import DistinctCache, distinct, of_type
from headrace.transforms.keys import Key
from headrace.transforms.mask_json import JsonMasker
from headrace.transforms.mask_pii import MaskKernel, MaskPii, network

from .digits import UNREADABLE


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("key") / "key", create=True)


@pytest.fixture(scope="module")
def kernel(key: Key) -> MaskKernel:
    made = MaskPii(key).kernel()
    made.setup()
    assert isinstance(made, MaskKernel)
    return made


def mask(kernel: MaskKernel, **columns: object) -> dict[str, list[object]]:
    kernel.counts.clear()
    accepted, rejected = kernel(pa.RecordBatch.from_pydict(columns))
    assert rejected.num_rows == 0
    return accepted.to_pydict()


def test_default_masks_what_the_schemas_tag_and_drops_the_raw_record(kernel: MaskKernel, key: Key) -> None:
    batch = conform(
        {
            "user_id": pa.array(["ann", None, "ann"]),
            "ip_address": pa.array(["192.0.2.7", "2001:db8:1:2::3", "host.example"]),
            "page_url": pa.array(["/a?m=x@y.com", "/a", None]),
            "referrer": pa.array([None, "https://u:p@h.example/", None]),
            "query": pa.array(["call x@y.com", None, None]),
            "properties": pa.array(
                ['{"counterparty":"bob","size":1.50}', '{"description":"x@y.com"}', '{"ident":null}']
            ),
            "extra": pa.array(['{"/user/mail":"x@y.com"}', None, None]),
            "price": pa.array([Decimal("1.10"), None, None], pa.decimal128(38, 9)),
            "_raw": pa.array([b"ann x@y.com", b"", None]),
        },
        VALID_SCHEMA,
        3,
    )
    before = batch.to_pydict()
    accepted, rejected = kernel(batch)
    assert accepted.schema.equals(EVENT_SCHEMA)
    assert rejected.num_rows == 0
    got = accepted.to_pydict()
    expected = {
        "user_id": [key.token("ann"), None, key.token("ann")],
        "ip_address": ["192.0.2.0", "2001:db8:1::", None],
        "page_url": ["/a?m=[email]", "/a", None],
        "referrer": [None, "https://[credentials]@h.example/", None],
        "query": ["call [email]", None, None],
        "properties": [
            f'{{"counterparty":"{key.token("bob")}","size":1.50}}', '{"description":"[email]"}', '{"ident":null}',
        ],
        "extra": ['{"/user/mail":"[email]"}', None, None],
    }  # fmt: skip
    assert {n: got[n] for n in expected} == expected
    assert {n: v for n, v in got.items() if n not in expected} == {
        n: v for n, v in before.items() if n not in expected and n != "_raw"
    }
    assert batch.to_pydict() == before
    assert kernel.counts == {"invalid_ip": 1, "masked_cells": 6}


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), CODE, pa.dictionary(pa.int8(), pa.string())]
)
def test_string_types_slices_and_null_columns_are_kept(
    kernel: MaskKernel, key: Key, type_: pa.DataType
) -> None:
    users = of_type(pa.array(["a", None, "b", "a", "b"]), type_)
    urls = of_type(pa.array(["/", "/?x@y.de", None, "/", "/?x@y.de"]), type_)
    ips = of_type(pa.array(["1.2.3.4", "::1", "nope", None, "1.2.3.4"]), type_)
    batch = pa.RecordBatch.from_arrays([users, urls, ips], names=["user_id", "page_url", "ip_address"])
    whole = kernel(batch).accepted
    assert whole.schema.equals(batch.schema)
    assert whole.to_pydict() == {
        "user_id": [key.token("a"), None, key.token("b"), key.token("a"), key.token("b")],
        "page_url": ["/", "/?[email]", None, "/", "/?[email]"],
        "ip_address": ["1.2.3.0", "::", None, None, "1.2.3.0"],
    }
    for start in range(6):
        assert kernel(batch.slice(start, 2)).accepted.to_pydict() == whole.slice(start, 2).to_pydict()
    nothing = pa.RecordBatch.from_pydict({"user_id": pa.nulls(3), "other": [1, 2, 3]})
    assert kernel(nothing).accepted.equals(nothing)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.0"),
        ("::ffff:203.0.113.9", "203.0.113.0"),
        ("2001:DB8:0:1:1::1", "2001:db8::"),
        ("fe80::1%eth0", "fe80::"),
        ("2002:cb00:7109::1", "2002:cb00:7100::"),
        ("01.2.3.4", None),
        ("1.2.3.256", None),
        ("1.2.3", None),
        ("1.2.3.4\n", None),
        (" 1.2.3.4", None),
        ("١.2.3.4", None),
        ("1.2.3.4:80", None),
        ("", None),
        ("example.org", None),
    ],
)
def test_addresses(kernel: MaskKernel, address: str, expected: str | None) -> None:
    assert mask(kernel, ip_address=[address])["ip_address"] == [expected]
    assert network(address) == expected
    assert kernel.counts["invalid_ip"] == (expected is None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.ip_addresses().map(str), st.text("0123456789.:af", max_size=12), st.none())))
def test_addresses_are_the_standard_librarys_networks(
    kernel: MaskKernel, addresses: list[str | None]
) -> None:
    def oracle(text: str | None) -> str | None:
        try:
            address = ipaddress.ip_address(text or "")
        except ValueError:
            return None
        if address.version == 6 and address.ipv4_mapped:
            address = address.ipv4_mapped
        bits = 24 if address.version == 4 else 40 if str(address).startswith("2002:") else 48
        return str(ipaddress.ip_network((address, bits), strict=False).network_address)

    got = mask(kernel, ip_address=pa.array(addresses, pa.string()))["ip_address"]
    assert got == [oracle(a) for a in addresses]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('{"a":[{"b":"x@y.com"}],"n":1.50}', '{"a":[{"b":"[email]"}],"n":1.50}'),
        ('{"x@y.com":1,"z@y.com":2}', '{"[email]":1,"[email] 2":2}'),
        ('{"[email]":1,"x@y.com":2}', '{"[email]":1,"[email] 2":2}'),
        ('{"card":4111111111111111,"n":123456789012345678901234567890}',
         '{"card":"[card]","n":123456789012345678901234567890}'),
        ('{"card":4111111111111111.0}', '{"card":"[card].0"}'),
        ('{"card":4111111111111112,"t":true}', '{"card":4111111111111112,"t":true}'),
        ('{"m":"x\\u0040y.com"}', '{"m":"[email]"}'),
        ('{"m":"\\u00e9"}', '{"m":"\\u00e9"}'),
        ('"x@y.com"', '"[email]"'),
        ('{"m":"4' + UNREADABLE * 15 + '","n":1}', '{"m":"[redacted]","n":1}'),
        ('{"u":"/p?m=x%40y.com","p":null}', '{"p":null,"u":"/p?m=[email]"}'),
    ],
)  # fmt: skip
def test_json_cells(kernel: MaskKernel, document: str, expected: str) -> None:
    assert mask(kernel, custom_data=[document])["custom_data"] == [expected]
    json.loads(expected)


@pytest.mark.parametrize(
    ("document", "tagged"),
    [
        ('{"a":"v"}', {"a"}),
        ('{"a": "v", "b": 7}', {"a", "b"}),
        ('{"a":7.50,"x":"v"}', {"a"}),
        ('{"a":"v\\"w"}', {"a"}),
        ('{"a":["v",{"k":"w"},null,true]}', {"a"}),
        ('{"x":{"a":"v"}}', set()),
        ('{"x":"{\\"a\\":\\"v\\"}"}', set()),
        ('{"x":"a","y":"b"}', set()),
        ('{"a":null,"b":"v"}', {"b"}),
        ('{"a":"","b":"x@y.com"}', {"a", "b"}),
    ],
)
def test_tagged_members_lose_every_value(key: Key, document: str, tagged: set[str]) -> None:
    kernel = MaskKernel(key, {"properties/a": "token", "properties/b": "token"})
    kernel.setup()

    def tokens(value: object, text: str) -> object:
        if isinstance(value, list):
            return [tokens(v, json.dumps(v)) for v in value]
        if isinstance(value, dict):
            return {k: tokens(v, json.dumps(v)) for k, v in value.items()}
        return None if value is None else key.token(value if isinstance(value, str) else text)

    got = json.loads(str(mask(kernel, properties=[document])["properties"][0]))
    original = json.loads(document)
    texts = {"a": "7.50", "b": "7"}
    assert got == {k: tokens(v, texts.get(k, "")) if k in tagged else v for k, v in original.items()}
    assert kernel.counts["masked_cells"] == bool(tagged)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text('ab"\\{[:, é\n', max_size=4),
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", 'a"', "x"]), v, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None)
@given(document=st.dictionaries(st.sampled_from(["a", "b", 'a"', "x"]), VALUES, max_size=4))
def test_members_are_masked_alike_with_and_without_a_parser(
    kernel: MaskKernel, document: dict[str, object]
) -> None:
    """The text of a flat object is edited in place; a member that never occurs forces the parser."""

    def operator(values: pa.Array) -> pa.Array:
        return pa.array([f"<{v}>" for v in values.to_pylist()], pa.string())

    scanner = kernel._scanner
    text = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    results = [
        JsonMasker(scanner, {("a",): operator} | more, Counter()).scrub(pa.array([text])).to_pylist()[0]
        for more in ({}, {("q", "never"): operator})
    ]
    assert json.loads(results[0]) == json.loads(results[1])


def test_operators_of_members(key: Key) -> None:
    kernel = MaskKernel(key, {"extra": "json", "extra/~1client~1ip": "ip", "properties/who/id": "token"})
    kernel.setup()
    got = mask(
        kernel,
        extra=['{"/client/ip":"192.0.2.9","/m":"x@y.de"}', '{"/client/ip":"nobody"}'],
        properties=['{"who":{"id":"ann","n":1}}', '{"id":"ann","who":"ann"}'],
    )
    assert got["extra"] == ['{"/client/ip":"192.0.2.0","/m":"[email]"}', '{"/client/ip":null}']
    assert got["properties"] == [f'{{"who":{{"id":"{key.token("ann")}","n":1}}}}', '{"id":"ann","who":"ann"}']
    assert kernel.counts == {"masked_cells": 3, "invalid_ip": 1}


def test_a_cell_that_is_no_json_is_text_or_redacted(key: Key) -> None:
    kernel = MaskKernel(key, {"extra": "json", "properties": "json", "properties/who": "token"})
    kernel.setup()
    deep = "[" * 300 + '"x@y.de"' + "]" * 300
    got = mask(kernel, extra=["{x@y.de", "x", deep], properties=["{x@y.de", "x", deep])
    assert got["extra"] == ["{[email]", "x", deep.replace("x@y.de", "[email]")]
    assert got["properties"] == ['"[redacted]"', "x", '"[redacted]"']
    assert kernel.counts == {"masked_cells": 4, "redacted_cells": 2}


@pytest.mark.parametrize(
    ("sensitive", "message"),
    [
        ({"query": "email"}, "sensitive['query'] is 'email'; use one of token, ip, url, text, json"),
        ({"query/a": "token"}, "is a path into 'query', which holds no JSON"),
        ({"properties/a": "json"}, "a member is token, ip, url or text"),
        ({"properties": "text", "properties/a": "token"}, "which holds no JSON"),
        ({"properties/a": "token", "properties/a/b": "token"}, "lies in 'properties/a'"),
    ],
)
def test_wrong_kinds_are_refused(key: Key, sensitive: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MaskPii(key, sensitive=sensitive)
    assert message in str(error.value)


def test_key_is_checked_and_the_transform_pickles_without_the_secret(key: Key) -> None:
    with pytest.raises(ConfigError, match="key is a str"):
        MaskPii("secret")  # type: ignore[arg-type]
    data = pickle.dumps(MaskPii(key))
    assert Path(key.path).read_bytes().strip() not in data
    copy = pickle.loads(data).kernel()
    copy.setup()
    assert mask(copy, user_id=["ann"])["user_id"] == [key.token("ann")]


def test_batches_can_be_cut_anywhere(kernel: MaskKernel) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "user_id": [str(i % 7) for i in range(40)],
            "query": [f"u{i % 5}@x.com" if i % 3 else "" for i in range(40)],
        }
    )
    whole = kernel(batch).accepted.to_pydict()
    parts = [kernel(batch.slice(i, 9)).accepted.to_pydict() for i in range(0, 40, 9)]
    assert whole == {n: [v for p in parts for v in p[n]] for n in whole}


def test_cache_is_bounded_and_asks_once_for_what_it_holds() -> None:
    asked: list[str] = []

    def function(values: list[str]) -> list[str]:
        asked.extend(values)
        return [v.upper() for v in values]

    cache: DistinctCache[str] = DistinctCache(function, 4)
    assert cache(["a", None, "b", "a"]) == ["A", None, "B", "A"]
    assert cache(["b", "a"]) == ["B", "A"]
    assert asked == ["a", "b"]
    for i in range(50):
        assert cache([f"v{i}", "a"]) == [f"V{i}", "A"]
        assert len(cache) <= 8
    assert asked.count("a") == 1
    assert cache([]) == []


def test_distinct_never_works_on_more_values_than_rows() -> None:
    long = pa.DictionaryArray.from_arrays(
        pa.array([2, 0], pa.int32()), pa.array([f"v{i}" for i in range(99)])
    )
    codes = distinct(long)
    assert codes.to_pylist() == ["v2", "v0"]
    assert len(codes.dictionary) == 2
    assert distinct(pa.nulls(2)).to_pylist() == [None, None]
