"""Fixes: read from a file, applied to documents and columns."""

import json
import textwrap
from pathlib import Path

import pytest

from headrace.pipelines.replay.fixes import NotFixable, fix_columns, fix_document, load_fixes
from headrace.schemas.errors import ConfigError
from headrace.schemas.registry import Registry


def fixes_of(tmp_path: Path, text: str) -> list:
    path = tmp_path / "fixes.yaml"
    path.write_text(textwrap.dedent(text))
    return load_fixes(path, Registry.default())


def steps(tmp_path: Path, text: str) -> list:
    return fixes_of(tmp_path, "fixes:\n- steps:\n" + textwrap.indent(textwrap.dedent(text), "  "))


def fixed(tmp_path: Path, text: str, document: object) -> object:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return json.loads(fix_document(raw, steps(tmp_path, text)).raw)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("- set: /a/b\n  value: 1", {}, {"a": {"b": 1}}),
        ("- set: /a\n  value: null", {"a": 5}, {"a": None}),
        ("- set: /a/0\n  value: x", {"a": ["b"]}, {"a": ["x"]}),
        ("- default: /a\n  value: EUR", {"a": None}, {"a": "EUR"}),
        ("- default: /a\n  value: EUR", {"a": "USD"}, {"a": "USD"}),
        ("- cast: /a\n  to: integer", {"a": "12"}, {"a": 12}),
        ("- cast: /a\n  to: integer", {"a": 12.0}, {"a": 12}),
        ("- cast: /a\n  to: text", {"a": True}, {"a": "true"}),
        ("- cast: /a\n  to: boolean", {"a": "No"}, {"a": False}),
        ("- cast: /a\n  to: seconds", {"a": 0.5}, {"a": "1970-01-01T00:00:00.500000Z"}),
        ("- cast: /a\n  to: milliseconds", {"a": "1500"}, {"a": "1970-01-01T00:00:01.500000Z"}),
        ("- cast: /a\n  to: number", {"b": 1}, {"b": 1}),
        ("- rename: /uid\n  to: /user/id", {"uid": "x"}, {"user": {"id": "x"}}),
        ("- rename: /uid\n  to: /user/id", {"a": 1}, {"a": 1}),
        ("- replace: /a\n  pattern: '^http:'\n  with: 'https:'", {"a": "http://x"}, {"a": "https://x"}),
        ("- replace: /a\n  pattern: x\n  with: y", {"a": 7}, {"a": 7}),
        ("- drop: /a/b", {"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}),
        ("- drop: /x/y/z", {"a": 1}, {"a": 1}),
        ("- drop: /a~1b~0c", {"a/b~c": 1}, {}),
        ("- replace: record\n  pattern: ',}$'\n  with: '}'", b'{"a":1,}', {"a": 1}),
    ],
)
def test_steps_on_documents(tmp_path: Path, step: str, before: object, after: object) -> None:
    assert fixed(tmp_path, step, before) == after


def test_numbers_keep_all_of_their_digits(tmp_path: Path) -> None:
    raw = b'{"a": 0.12345678901234567890, "b": "12345678901234567890.5", "c": 123456789012345678901}'
    (fix,) = steps(tmp_path, "- cast: /b\n  to: number\n- set: /d\n  value: 1")
    done = fix_document(raw, [fix]).raw
    assert done == (
        b'{"a":0.12345678901234567890,"b":12345678901234567890.5,"c":123456789012345678901,"d":1}'
    )


@pytest.mark.parametrize(
    ("step", "document", "message"),
    [
        ("- cast: /a\n  to: number", {"a": "secret"}, "the value at /a is no number"),
        ("- cast: /a\n  to: integer", {"a": "1.5"}, "is no integer"),
        ("- cast: /a\n  to: boolean", {"a": "secret"}, "is no boolean"),
        ("- cast: /a\n  to: integer", {"a": True}, "is no integer"),
        ("- cast: /a\n  to: number", {"a": "NaN"}, "is no number"),
        ("- cast: /a\n  to: seconds", {"a": "1e20"}, "is no seconds"),
        ("- rename: /a\n  to: /b", {"a": 1, "b": 2}, "something stands there already"),
        ("- set: /a/b\n  value: 1", {"a": "secret"}, "lies in is no object"),
        ("- set: /a/7\n  value: 1", {"a": []}, "no such place"),
        ("- set: /a\n  value: 1", b"{secret", "not JSON"),
        ("- set: price\n  value: 1", {}, "names the column price, the row has a document"),
    ],
)
def test_what_can_t_be_done_is_told_without_values(
    tmp_path: Path, step: str, document: object, message: str
) -> None:
    with pytest.raises(NotFixable, match=message) as raised:
        fixed(tmp_path, step, document)
    assert "secret" not in str(raised.value)


def test_fixes_are_applied_in_order_and_may_name_the_schema(tmp_path: Path) -> None:
    found = fixes_of(
        tmp_path,
        """
        fixes:
          - name: first
            where: reason = 'type'
            steps:
              - set: /a
                value: 1
              - schema: commerce
          - steps:
              - rename: /a
                to: /b
        """,
    )
    assert [fix.where for fix in found] == ["reason = 'type'", None]
    done = fix_document(b"{}", found)
    assert (done.raw, done.schema, done.names) == (b'{"b":1}', "commerce", ["first", "fix 2"])


def test_columns_of_rows_without_a_document(tmp_path: Path) -> None:
    found = steps(
        tmp_path,
        """
        - set: price
          value: 9.99
        - default: currency
          value: EUR
        - replace: category
          pattern: ^toy$
          with: toys
        - drop: query
        """,
    )
    row = fix_columns({"price": None, "currency": "USD", "category": "toy", "query": "x", "city": "y"}, found)
    assert {n: str(v) for n, v in row.items()} == {
        "price": "9.99",
        "currency": "USD",
        "category": "toys",
        "query": "None",
        "city": "y",
    }
    with pytest.raises(NotFixable, match="name a column"):
        fix_columns({}, steps(tmp_path, "- drop: /a"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected one key `fixes`"),
        ("fixes: []", "expected one key `fixes`"),
        ("fixes: [1]", r"fixes\[0\]: expected a table with `steps`"),
        ("fixes: [{step: []}]", "unknown key 'step'.*did you mean 'steps'"),
        ("fixes: [{steps: []}]", r"fixes\[0\].steps: expected a list of steps"),
        ("fixes: [{where: nothing = 1, steps: [{drop: /a}]}]", r"fixes\[0\].where: .*nothing"),
        ("fixes: [{where: 5, steps: [{drop: /a}]}]", "expected an expression"),
        ("fixes: [{steps: [{delete: /a}]}]", r"steps\[0\]: expected one of set, default"),
        ("fixes: [{steps: [{set: /a}]}]", "set needs 'value'"),
        ("fixes: [{steps: [{drop: /a, value: 1}]}]", "drop has no 'value'"),
        ("fixes: [{steps: [{drop: pric}]}]", "neither a pointer .* nor a column; did you mean 'price'"),
        ("fixes: [{steps: [{cast: /a, to: float}]}]", "'float'; expected one of text"),
        ("fixes: [{steps: [{cast: price, to: number}]}]", "a column has its type"),
        ("fixes: [{steps: [{rename: /a, to: b}]}]", "from pointer to pointer"),
        ("fixes: [{steps: [{replace: /a, pattern: '(', with: x}]}]", "pattern: "),
        ("fixes: [{steps: [{set: record, value: x}]}]", "only replace works on a whole record"),
        ("fixes: [{steps: [{set: price, value: much}]}]", "column price is decimal128"),
        ("fixes: [{steps: [{schema: nothing}]}]", "nothing"),
        ("fixes: {", "is no YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fixes_of(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load_fixes(tmp_path / "none.yaml", Registry.default())
