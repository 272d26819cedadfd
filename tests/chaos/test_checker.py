"""The checker sees each kind of damage, one at a time."""

from collections.abc import Callable

import duckdb
import pytest

from tests.chaos.checker import Verdict, _check_ids, _check_records

RECORDS = [
    # origin, offset, hash, kind, id, cents
    ("t/0", 0, 11, "event", "a", 0),
    ("t/0", 1, 11, "duplicate", "a", 0),
    ("t/0", 2, 12, "conflict", "a", 0),
    ("t/0", 3, 13, "event", "b", 0),
    ("t/1", 0, 14, "invalid", "c", 0),
    ("t/1", 1, 15, "late", "d", 0),
]
EVENTS = [("t/0", 0, "a"), ("t/0", 3, "b"), ("t/1", 1, "d")]
QUARANTINE = [
    ("t/0", 1, "a", "dedupe", "duplicate"),
    ("t/0", 2, "a", "dedupe", "duplicate_conflict"),
    ("t/1", 0, None, "validate", "type"),
]

Rows = list[tuple[object, ...]]


def _verdict(events: Rows, quarantine: Rows) -> Verdict:
    db = duckdb.connect()
    db.execute(
        "CREATE TABLE records (origin VARCHAR, origin_position BIGINT, hash UBIGINT, kind VARCHAR, id VARCHAR, cents BIGINT)"
    )
    db.execute("CREATE TABLE events (origin VARCHAR, origin_position BIGINT, event_id VARCHAR)")
    db.execute(
        "CREATE TABLE quarantine (origin VARCHAR, origin_position BIGINT, event_id VARCHAR, stage VARCHAR, reason VARCHAR)"
    )
    for table, rows in (("records", RECORDS), ("events", events), ("quarantine", quarantine)):
        for row in rows:
            db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row))
    verdict = Verdict()
    _check_records(verdict, db)
    _check_ids(verdict, db)
    return verdict


def test_what_is_right_is_sound() -> None:
    verdict = _verdict(list(EVENTS), list(QUARANTINE))
    assert verdict.faults == []
    assert verdict.counts == {
        "lake": 3,
        "quarantine": 3,
        "rejected dedupe/duplicate": 1,
        "rejected dedupe/duplicate_conflict": 1,
        "rejected validate/type": 1,
    }


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda events, _: events.pop(1), ["(lost)", "should be in the lake", "valid records"]),
        (lambda _, quarantine: quarantine.pop(2), ["(lost)"]),
        (
            lambda events, _: events.append(events[0]),
            ["(doubled)", "in the lake more than once", "valid records"],
        ),
        (lambda _, quarantine: quarantine.append(("t/0", 3, "b", "dedupe", "duplicate")), ["(doubled)"]),
        (lambda events, _: events.append(("t/9", 7, "z")), ["of no record", "valid records"]),
        (lambda events, _: events.__setitem__(1, ("t/0", 3, "x")), ["should be in the lake", "another id"]),
        (
            lambda _, quarantine: quarantine.__setitem__(1, ("t/0", 2, "a", "dedupe", "duplicate")),
            ["another reason"],
        ),
    ],
    ids=[
        "lost row",
        "lost reject",
        "doubled row",
        "row and reject",
        "foreign row",
        "other id",
        "other reason",
    ],
)
def test_damage_is_seen(damage: Callable[[Rows, Rows], object], found: list[str]) -> None:
    events, quarantine = list(EVENTS), list(QUARANTINE)
    damage(events, quarantine)  # type: ignore[arg-type]
    faults = _verdict(events, quarantine).faults  # type: ignore[arg-type]
    for text in found:
        assert any(text in fault for fault in faults), (text, faults)
