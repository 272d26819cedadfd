import itertools

import pytest

from headrace.connectors.stream_accounts import Accounts, Imbalance, Step
from headrace.connectors.stream_entries import FilesEntry, LateEntry, PollEntry, ShardEntry
from headrace.connectors.stream_source import Read
from headrace.connectors.write_lake import WrittenFile


def events(rows):
    return FilesEntry("events", (WrittenFile("e.parquet", rows, 1, {}),))


def quarantine(stage, **reasons):
    rows = sum(reasons.values())
    return FilesEntry("quarantine", (WrittenFile("q.parquet", rows, 1, {}, {"by_reason": {stage: reasons}}),))


def poll(number=0, reader=0, **change):
    values = {
        "rows_in": 10,
        "reads": (Read("t/0", number * 10, number * 10 + 10, 10),),
        "rejected_by_reader": 2,
        "rows_to_shard": {0: 5, 1: 3},
        "read_at": 0,
        "receipt": f"r{number}",
        "watermark": number,
        "behind": 100 - number,
    } | change
    return [PollEntry(reader, number, **values), quarantine("validate", invalid=2)]


def lists(number=0, reader=0):
    """The packed lists of a poll: the reader's and those of its two shards."""
    return [
        poll(number, reader),
        [ShardEntry(reader, number, 0, 4, 1), events(4), quarantine("dedupe", duplicate=1)],
        [ShardEntry(reader, number, 1, 3, 0), events(3)],
    ]


def applied(*entries):
    accounts, step = Accounts(), Step()
    for each in entries:
        accounts = accounts.after(each, step)
    return accounts, step


def test_lists_may_come_in_any_order():
    for order in itertools.permutations(lists(0) + lists(1)):
        accounts = Accounts()
        for each in order:
            accounts = accounts.after(each, Step())
            assert accounts.balanced
        assert (accounts.rows_in, accounts.accepted, accounts.in_flight) == (20, 14, 0)
        assert accounts.rejected == {"validate": {"invalid": 4}, "dedupe": {"duplicate": 2}}
        assert accounts.readers[0].done == 2
        assert accounts.watermark == 1
        assert accounts.behind == 99


def test_a_step_says_what_became_done():
    accounts, step = applied(*lists(1))
    assert (step.reads, step.receipts, accounts.readers[0].done) == ({}, [], 0)
    assert accounts.watermark is None
    for each in lists(0)[:2]:
        accounts = accounts.after(each, step)
    assert accounts.in_flight == 3
    accounts = accounts.after(lists(0)[2], step)
    assert step.reads == {"t/0": [0, 20]}
    assert step.receipts == ["r0", "r1"]
    assert (step.rows_in, step.accepted) == (20, 14)
    assert not list(accounts.open_polls())


def test_in_flight_rows_are_those_of_readers_polls_only():
    accounts, _ = applied(lists(0)[1])
    assert (accounts.in_flight, accounts.outstanding, accounts.balanced) == (0, -5, True)
    accounts = accounts.after(lists(1)[0], Step())
    assert (accounts.in_flight, accounts.outstanding, accounts.balanced) == (8, 3, True)


def test_the_watermark_is_the_lowest_of_all_readers():
    accounts, _ = applied(*lists(0), *lists(1), *lists(0, reader=1))
    assert accounts.watermark == 0
    accounts = accounts.after(poll(0, reader=2), Step())
    assert accounts.watermark is None
    assert accounts.next_job().watermark is None
    later = applied(*lists(0), *lists(1))[0].next_job()
    assert (later.watermark, later.readers, later.rows_in) == (1, {}, 20)


def test_late_rows_are_counted_apart():
    accounts, step = applied([LateEntry("m", b"", 4)], [LateEntry("m", b"", 1), LateEntry("n", b"", 2)])
    assert accounts.late == step.late == {"m": 5, "n": 2}
    assert accounts.balanced


SHARD = [ShardEntry(0, 0, 0, 4, 1), events(4), quarantine("dedupe", duplicate=1)]
BROKEN = {
    "a file is missing": (
        [lists()[0], [SHARD[0], SHARD[2]]],
        "reader 0, poll 0: 4 rows are counted as accepted, the files that came with them hold 0",
    ),
    "a row is missing": (
        [lists()[0], [ShardEntry(0, 0, 0, 3, 1), events(3), SHARD[2]]],
        "reader 0, poll 0: 5 rows were sent to shard 0, it accepted 3 and rejected 1",
    ),
    "a file has a row less": (
        [lists()[0], [SHARD[0], events(3), SHARD[2]]],
        "reader 0, poll 0: 4 rows are counted as accepted, the files that came with them hold 3",
    ),
    "the reader's count is missing": (
        [[quarantine("validate", invalid=2)]],
        "files without a poll: 0 rows are counted as rejected, the files that came with them hold 2",
    ),
    "a shard reports twice": ([SHARD, SHARD], "reader 0, poll 0: shard 0 has reported it twice"),
    "a reader reports twice": ([poll(), poll()], "reader 0, poll 0: its reader has reported it twice"),
    "a done poll is reported": (
        [*lists(), SHARD],
        "reader 0, poll 0: shard 0 has reported it again, it was complete already",
    ),
    "a shard that is not": (
        [poll(), [ShardEntry(0, 0, 2, 0, 0)]],
        "reader 0, poll 0: shard 2 has reported, the reader named only 2 shards",
    ),
    "the reader lost a row": (
        [poll(rows_to_shard={0: 5, 1: 2})],
        "reader 0, poll 0: 10 rows came in, 2 were rejected by the reader and 7 sent to shards",
    ),
    "the source counts otherwise": (
        [poll(reads=(Read("t/0", 0, 10, 9),))],
        "reader 0, poll 0: 10 rows came in, its reads took 9",
    ),
    "reasons that don't add up": (
        [[FilesEntry("quarantine", (WrittenFile("q.parquet", 2, 1, {}, {"by_reason": {"s": {"r": 1}}}),))]],
        "quarantine file q.parquet holds 2 rows, its reasons count 1",
    ),
    "many polls": (
        [[ShardEntry(0, n, 0, 1, 0) for n in range(6)]],
        "reader 0, poll 0; reader 0, poll 1; reader 0, poll 2; reader 0, poll 3 and 2 more: 6 rows are counted",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_add_up_is_found(name):
    before, message = BROKEN[name]
    accounts, _ = applied(*before[:-1])
    saved = accounts.encode()
    with pytest.raises(Imbalance) as caught:
        accounts.after(before[-1], Step())
    assert str(caught.value).startswith(message)
    assert accounts.encode() == saved


def test_a_shard_that_never_reports_keeps_its_poll_open():
    accounts, step = applied(lists(0)[0], lists(0)[1], *lists(1))
    assert accounts.in_flight == 3
    assert accounts.readers[0].done == 0
    assert [number for _, number, _ in accounts.open_polls()] == [0, 1]
    assert step.reads == {}


def test_accounts_survive_their_encoding():
    accounts, _ = applied(*lists(0), lists(1)[0], lists(2)[1])
    assert Accounts.decode(accounts.encode()) == accounts
