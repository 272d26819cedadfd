import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.ledger import Ledger
from headrace.schemas.errors import ConfigError

REJECTED = {"validate": {"missing": 2, "bad_type": 3}, "decode": {"not_json": 5}, "deduplicate": {}}
COUNTS = st.integers(0, 10**12)


def test_the_file_holds_exactly_the_documented_keys(tmp_path):
    Ledger(110, 100, REJECTED).write(tmp_path / "ledger.json")
    assert (tmp_path / "ledger.json").read_text() == (
        '{\n  "accepted": 100,\n  "balanced": true,\n  "rejected": {\n    "decode": {\n      "not_json": 5\n    },\n'
        '    "validate": {\n      "bad_type": 3,\n      "missing": 2\n    }\n  },\n  "rows_in": 110\n}\n'
    )


@settings(max_examples=40)
@given(COUNTS, COUNTS, st.dictionaries(st.text(), st.dictionaries(st.text(), COUNTS, max_size=3), max_size=3))
def test_balance_is_what_the_sums_say(rows_in, accepted, rejected):
    ledger = Ledger(rows_in, accepted, rejected)
    gap = rows_in - accepted - sum(n for by in rejected.values() for n in by.values())
    assert ledger.balanced == (gap == 0) == (ledger.explain_imbalance() == "")
    if gap:
        assert f"{abs(gap):,} row" in ledger.explain_imbalance()


def test_what_was_written_is_loaded(tmp_path):
    path = tmp_path / "ledger.json"
    for ledger in (Ledger(0, 0), Ledger(7, 1, {"decode": {"ungültig": 5}})):
        ledger.write(path)
        assert Ledger.load(path) == ledger


@pytest.mark.parametrize(
    ("rows_in", "accepted", "expected"),
    [
        (
            1_000,
            900,
            "rows in 1,000 ≠ accepted 900 + rejected 99: 1 row is missing; the output can't be trusted.",
        ),
        (2_000, 900, "rows in 2,000 ≠ accepted 900 + rejected 99: 1,001 rows are missing; the output can't"),
        (998, 900, "rows in 998 ≠ accepted 900 + rejected 99: 1 row is there without having come in; the"),
    ],
)
def test_an_imbalance_is_explained(rows_in, accepted, expected):
    message = Ledger(rows_in, accepted, {"stale": {"stale": 99}}).explain_imbalance()
    assert message.startswith(expected)
    assert "run again with another --output" in message


@pytest.mark.parametrize("bad", [-1, 1.0, True, "1", None])
def test_a_count_is_an_integer(bad):
    with pytest.raises(ValueError, match="an integer of 0 or more"):
        Ledger(1, bad)
    with pytest.raises(ValueError, match=r"rejected\.decode\.not_json is"):
        Ledger(1, 1, {"decode": {"not_json": bad}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read as a ledger"),
        ("[]", "is not a ledger; it must have the keys"),
        ({"rows_in": 1}, "is not a ledger; it must have the keys"),
        ({"rows_in": 1, "accepted": 1, "rejected": [], "balanced": True}, "is not a ledger; it must have"),
        ({"rows_in": 1, "accepted": 1, "rejected": {"a": 1}, "balanced": True}, "is not a ledger"),
        ({"rows_in": 1, "accepted": "1", "rejected": {}, "balanced": True}, "accepted is '1'"),
        (
            {"rows_in": 2, "accepted": 1, "rejected": {}, "balanced": True},
            "its counts say False; it was altered",
        ),
    ],
)
def test_anything_else_is_refused(tmp_path, content, message):
    path = tmp_path / "ledger.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        Ledger.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_run_without_ledger_has_not_finished(tmp_path):
    with pytest.raises(
        ConfigError, match="does not exist: the run has not finished; run the same command again"
    ):
        Ledger.load(tmp_path / "ledger.json")
