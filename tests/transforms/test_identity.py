"""Ids made for events that carry none."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.identity import content_ids, occurrence_ids, position_ids, uuid_bytes, uuid_text

DOCUMENTS = pa.array([b"a", b"", b"a", b"\xff\x00", b"b" * 1000])
ORIGINS = pa.array(["f", "f", "g", "f", None])


def assert_uuid8(ids: pa.Array) -> None:
    for text in ids.to_pylist():
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 8, uuid.RFC_4122)


def test_content_ids_are_uuid8_and_tell_origin_and_content_apart():
    ids = content_ids(ORIGINS, DOCUMENTS)
    assert ids.type == pa.string()
    assert_uuid8(ids)
    assert len(set(ids.to_pylist())) == 5


def test_content_ids_are_pinned_for_ever():
    assert content_ids(pa.array(["f"]), pa.array([b"a"])).to_pylist() == [
        "33f0522a-5f01-8e02-8084-cbcea68e55ea"
    ]
    assert position_ids(pa.array(["t"]), pa.array([7])).to_pylist() == [
        "f429d49a-ea7e-84ea-bdbe-47da1c69c8e9"
    ]
    base = ["00000000-0000-0000-0000-000000000001"]
    assert occurrence_ids(base, [1]).to_pylist() == ["4cc70e3b-f2c4-85e9-94f3-4b2a023d4317"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["f", "g", "", "é"]), st.binary(max_size=6)), max_size=30))
def test_equal_ids_exactly_for_equal_origin_and_content(rows):
    ids = content_ids(
        pa.array([o for o, _ in rows], pa.string()), pa.array([d for _, d in rows], pa.binary())
    )
    assert dict(zip(rows, ids.to_pylist(), strict=True)).keys() == set(rows)
    assert len(set(ids.to_pylist())) == len(set(rows))
    assert len(set(zip(rows, ids.to_pylist(), strict=True))) == len(set(rows))


def test_content_ids_do_not_depend_on_the_batch_or_the_encoding():
    whole = content_ids(ORIGINS, DOCUMENTS)
    sliced = content_ids(ORIGINS.slice(2), DOCUMENTS.slice(2))
    assert whole.slice(2).to_pylist() == sliced.to_pylist()
    assert content_ids(ORIGINS.dictionary_encode(), DOCUMENTS).equals(whole)
    assert content_ids(pa.nulls(1), pa.array([b"a"])).equals(content_ids(pa.array([""]), pa.array([b"a"])))
    assert len(content_ids(ORIGINS.slice(0, 0), DOCUMENTS.slice(0, 0))) == 0


def test_origin_and_content_are_not_interchangeable():
    ids = content_ids(pa.array(["x", "y"]), pa.array([b"y", b"x"]))
    assert ids[0] != ids[1]


def test_null_document_or_position_has_no_id():
    ids = content_ids(pa.array(["f", "f"]), pa.array([None, b"a"], pa.binary()))
    assert ids.null_count == 1 and ids[0].as_py() is None
    assert position_ids(pa.array(["f", "f"]), pa.array([1, None])).null_count == 1


def test_position_ids_are_distinct_and_differ_from_content_ids():
    ids = position_ids(pa.array(["t/0"] * 1000 + ["t/1"] * 1000), pa.array([*range(1000), *range(1000)]))
    assert_uuid8(ids)
    assert len(set(ids.to_pylist())) == 2000
    assert position_ids(pa.array(["t"]), pa.array([-1])) != position_ids(pa.array(["t"]), pa.array([1]))


def test_occurrence_zero_is_the_base_and_later_ones_are_new():
    base = content_ids(ORIGINS, DOCUMENTS)
    assert occurrence_ids(base, np.zeros(5)).equals(base)
    later = occurrence_ids(pa.array([base[0].as_py()] * 100), np.arange(100)).to_pylist()
    assert len(set(later)) == 100
    assert later[0] == base[0].as_py()
    assert_uuid8(pa.array(later))
    assert occurrence_ids([later[0]], [3]).to_pylist() == [later[3]]


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        (["x"], [1], "row 0 is not a UUID"),
        (["00000000-0000-0000-0000-000000000001"], [-1], "0 or more"),
        (["00000000-0000-0000-0000-000000000001"], [1, 2], "each base id"),
        ([None], [0], "row 0 is not a UUID"),
    ],
)
def test_occurrence_ids_refuse_nonsense(ids, counts, message):
    with pytest.raises(ValueError, match=message):
        occurrence_ids(pa.array(ids, pa.string()), counts)


def is_uuid_text(text: str | None) -> bool:
    dashes = (8, 13, 18, 23)
    return (
        text is not None
        and len(text.encode()) == 36
        and all((c == "-") if i in dashes else (c in "0123456789abcdefABCDEF") for i, c in enumerate(text))
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.uuids().map(str),
            st.uuids().map(lambda u: str(u).upper()),
            st.text(max_size=40),
            st.uuids().map(lambda u: str(u)[:35] + "g"),
            st.uuids().map(lambda u: str(u).replace("-", "0")),
            st.uuids().map(lambda u: u.hex + "----"),
        ),
        max_size=20,
    ),
    st.integers(0, 3),
)
def test_uuid_bytes_against_the_standard_library(texts, offset):
    bits, known = uuid_bytes(pa.array(texts, pa.string()).slice(offset))
    texts = texts[offset:]
    assert known.tolist() == [is_uuid_text(t) for t in texts]
    for row, text in enumerate(texts):
        assert bits[row].tobytes() == (uuid.UUID(text).bytes if known[row] else bytes(16))
    written = uuid_text(bits, known)
    assert written.to_pylist() == [t.lower() if is_uuid_text(t) else None for t in texts]
    written.validate(full=True)
