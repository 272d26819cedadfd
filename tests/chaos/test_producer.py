import json
from collections import Counter
from datetime import UTC, datetime, timedelta

from tests.chaos.producer import CONFLICT, DUPLICATE, EVENT, KINDS, LATE, STALE, UNPARSABLE, Events

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


def _made(seed: int, number: int) -> list[tuple[str, str, int, bytes]]:
    events = Events(seed)
    return [events.next(NOW) for _ in range(number)]


def test_events_are_a_function_of_seed_and_time() -> None:
    assert _made(7, 500) == _made(7, 500)
    assert _made(7, 500) != _made(8, 500)


def test_all_kinds_come_and_are_what_they_are_called() -> None:
    made = _made(7, 20_000)
    counts = Counter(kind for kind, *_ in made)
    assert set(counts) == set(KINDS)
    assert 0.93 < counts[EVENT] / len(made) < 0.97
    first = {id_: record for kind, id_, _, record in made if kind == EVENT}
    for kind, id_, _, record in made:
        if kind == DUPLICATE:
            assert record == first[id_]
        elif kind == CONFLICT:
            assert record != first[id_]
            assert json.loads(record)["metadata"] == json.loads(first[id_])["metadata"]
        elif kind in (LATE, STALE):
            by = timedelta(minutes=10) if kind == LATE else timedelta(hours=30)
            assert datetime.fromisoformat(json.loads(record)["metadata"]["timestamp"]) == NOW - by
        elif kind == UNPARSABLE:
            assert not record.endswith(b"}")
    assert len(first) == counts[EVENT]
