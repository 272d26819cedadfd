"""The steps of the row-wise peer, one by one."""

from datetime import UTC, datetime

import pytest
from fates import NOW, Fates

from benchmarks.rowwise import VARIANTS, Reject, Rowwise, micros_of


@pytest.fixture(params=VARIANTS)
def steps(request: pytest.FixtureRequest) -> Rowwise:
    return Rowwise(request.param, micros_of(NOW))


def row_of(steps: Rowwise, event: dict) -> dict:
    key, document = steps.validate(event)
    return steps.to_row(b"raw", key, document)


def test_micros_of_is_exact() -> None:
    assert micros_of(NOW.replace(microsecond=1)) == 1_795_262_400_000_001


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": NaN}', b"\xff", b"{} {}"])
def test_decode_rejects_what_is_no_json(steps: Rowwise, raw: bytes) -> None:
    with pytest.raises(Reject) as told:
        steps.decode(raw)
    assert (told.value.stage, told.value.reason) == ("decode", "malformed")


def test_decode_wants_an_object(steps: Rowwise) -> None:
    with pytest.raises(Reject) as told:
        steps.decode(b"[1]")
    assert told.value.reason == "unknown_schema"


def test_failures_have_keyword_and_pointer(steps: Rowwise) -> None:
    event = Fates().envelope(version="1")
    event["user"]["id"] = ""
    with pytest.raises(Reject) as told:
        steps.validate(event)
    assert sorted(told.value.failures) == [("minLength", "/user/id"), ("pattern", "/metadata/version")]


def test_what_the_schema_does_not_name_is_kept(steps: Rowwise) -> None:
    event = Fates().envelope() | {"trace": {"id": 1}}
    event["context"]["beta"] = None
    masked = steps.mask(row_of(steps, event))
    assert masked["extra"] == '{"/context/beta":null,"/trace":{"id":1}}'
    assert masked["properties"] == '{"shade":"red"}'


def test_sensitive_fields_in_properties_are_masked(steps: Rowwise) -> None:
    event = Fates().financial() | {"counterparty": "Ann", "description": "for ann@corp.example"}
    masked = steps.mask(row_of(steps, event))
    assert "Ann" not in masked["properties"] and "corp.example" not in masked["properties"]
    assert '"bid":"10.1"' in masked["properties"]


@pytest.mark.parametrize(
    ("value", "text"), [("5.00", "5"), (0.1, "0.1"), (7, "7"), (1e-9, "0.000000001"), ("100", "100")]
)
def test_money_is_canonical_text(steps: Rowwise, value: object, text: str) -> None:
    assert row_of(steps, Fates().commerce("refund", value, 1))["price"] == text


def test_money_beyond_nine_places_is_invalid(steps: Rowwise) -> None:
    with pytest.raises(Reject) as told:
        row_of(steps, Fates().commerce("refund", 1e-10, 1))
    assert (told.value.reason, told.value.failures) == ("invalid", [("x-decimal", "/price")])


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("2026-11-21T12:00:00.5+01:00", 39_600.5),
        ("2026-11-21t12:00:00z", 43_200),
        ("2026-11-21T12:00:00Z", 43_200),
    ],
)
def test_times(steps: Rowwise, text: str, second: float) -> None:
    day = 86_400_000_000
    row = row_of(steps, Fates().envelope(timestamp=text))
    assert row["event_time"] - row["event_time"] // day * day == second * 1_000_000 % day


def test_a_leap_second_is_the_next_one() -> None:
    row = row_of(Rowwise("orjson", micros_of(NOW)), Fates().envelope(timestamp="2016-12-31T23:59:60Z"))
    assert row["event_time"] == micros_of(datetime(2017, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("address", "cut"), [("8.8.4.4", "8.8.4.0"), ("2001:db8:1:2::3", "2001:db8:1::"), ("home", None)]
)
def test_addresses_are_truncated(steps: Rowwise, address: str, cut: str | None) -> None:
    assert steps.mask({"ip_address": address})["ip_address"] == cut


def test_numbers_that_fail_luhn_stay(steps: Rowwise) -> None:
    masked = steps.mask(
        {"query": "4111111111111112 5500-0000-0000-0004", "page_url": "/?m=ann%40corp.example&q=1"}
    )
    assert masked["query"] == "4111111111111112 [card]"
    assert "corp" not in masked["page_url"] and masked["page_url"].endswith("&q=1")


def test_a_conflict_differs_in_content(steps: Rowwise) -> None:
    row = {"event_id": "x", "id_generated": False, "event_type": "click"}
    told = [reason for _, reason in steps.first_of([row, dict(row), {**row, "event_type": "search"}])]
    assert told == [None, "duplicate", "duplicate_conflict"]


def test_the_quarantine_holds_only_sealed_documents(steps: Rowwise) -> None:
    assert steps.seal(b"ann@corp.example") == steps.seal(b"ann@corp.example")
    assert b"ann" not in steps.seal(b"ann@corp.example")
