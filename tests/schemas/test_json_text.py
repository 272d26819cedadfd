"""One strict reading and one canonical writing of JSON."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.schemas.json_text import (
    MAX_DEPTH,
    MalformedJsonError,
    canonical,
    depth,
    parse,
    parse_exact,
    pointer,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_canonical_does_not_depend_on_layout_and_loses_nothing(value):
    loose = json.dumps(value, indent=2).encode()
    if "\\ud" in loose.decode() and not _encodable(value):
        return
    compact = json.dumps(_reversed(value), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text = canonical(loose)
    assert text == canonical(compact) == canonical(text.encode()) == canonical(parse_exact(loose))
    assert json.loads(text) == value


def test_numbers_keep_their_last_digit():
    assert canonical(b'{"b": 12345678901234567890123, "a": 0.12345678901234567890}') == (
        '{"a":0.12345678901234567890,"b":12345678901234567890123}'
    )
    assert canonical(b"[1.50, 1.5, 1e2, 100.0]") == "[1.5,1.5,100.0,100.0]"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (b'{"a": NaN}', "malformed_json", "column 7"),
        (b'{"a": 1', "malformed_json", "column 8"),
        (b"\xef\xbb\xbf{}", "malformed_json", "byte order mark"),
        (b'{"a": "\x00"}', "malformed_json", "NUL byte"),
        (b'{"a": 1}{"b": 2}', "malformed_json", "column 9"),
        (b'{"a": 1e400}', "malformed_json", "infinity"),
        (b"[" * 1000 + b"]" * 1000, "nesting_too_deep", f"more than {MAX_DEPTH} levels"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nesting_too_deep", "flatten"),
    ],
)
def test_what_is_not_json_is_named(text, code, said):
    with pytest.raises(MalformedJsonError) as caught:
        parse(text)
    assert caught.value.failure["code"] == code
    assert said in caught.value.failure["message"]


def test_brackets_in_strings_are_no_nesting():
    text = orjson.dumps({"a": "[" * 400, "b": '\\"{' * 200})
    assert depth(text) == 1
    assert parse(text)["a"] == "[" * 400


def test_the_last_of_duplicate_keys_wins_and_big_integers_are_exact():
    assert parse(b'{"a": 1, "a": 2}') == {"a": 2}
    assert parse(b'{"a": 18446744073709551617}') == {"a": 18446744073709551617}


def test_pointers_are_escaped():
    assert pointer(("a/b", "m~n", 0, "")) == "/a~1b/m~0n/0/"
    assert pointer(()) == ""


def _reversed(value):
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def _encodable(value):
    try:
        json.dumps(value, ensure_ascii=False).encode()
        return True
    except UnicodeEncodeError:
        return False
