"""The watermark of numbered messages, against plain Python."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.errors import ConfigError
from headrace.transforms.stream_clock import END, StreamClock, _Run
from headrace.transforms.stream_message import Message


def message(reader=0, shard=0, poll=0, watermark=None, read_at=0, final=False) -> Message:
    return Message(reader, shard, poll, watermark, None, read_at, None, final)


def contiguous(came: list[tuple[Message, bool]], reader: int, shard: int) -> list[tuple[Message, bool]]:
    """The messages of a sender up to the first gap."""
    polls = {m.poll: (m, idle) for m, idle in came if (m.reader, m.shard) == (reader, shard)}
    found = []
    while len(found) in polls:
        found.append(polls[len(found)])
    return found


def oracle(came: list[tuple[Message, bool]], readers: int, shards: int, before: int | None) -> int | None:
    """The watermark after these messages, given the one before the last."""
    senders = [contiguous(came, r, s) for r in range(readers) for s in range(shards)]
    marks = []
    for passed in senders:
        known = [END if m.final else m.watermark for m, _ in passed if m.final or m.watermark is not None]
        marks.append((max(known, default=None), bool(passed) and passed[-1][1]))
    going = [(mark, idle) for mark, idle in marks if mark != END]
    busy = [mark for mark, idle in going if not idle]
    if not going:
        now = END
    elif busy:
        now = None if None in busy else min(busy)
    else:
        now = max((mark for mark, _ in going if mark is not None), default=None)
    return max((w for w in (before, now) if w is not None), default=None)


@st.composite
def arrivals(draw):
    readers, shards = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    with_idle = draw(st.booleans())
    sent = []
    for reader in range(readers):
        polls = draw(st.integers(0, 5))
        for poll in range(polls):
            watermark = draw(st.none() | st.integers(-5, 20))
            final = poll == polls - 1 and draw(st.booleans())
            idle = with_idle and draw(st.booleans())
            read_at = draw(st.integers(0, 2**40))
            sent += [(message(reader, s, poll, watermark, read_at, final), idle) for s in range(shards)]
    return readers, shards, draw(st.permutations(sent)), draw(st.sets(st.integers(0, 45)))


@settings(max_examples=100, deadline=None)
@given(arrivals())
def test_any_order_of_messages_and_any_saving_between_them_equals_plain_python(case):
    readers, shards, sent, saved = case
    clock, expected = StreamClock(readers, shards), None
    for i, (received, idle) in enumerate(sent):
        clock.receive(received, idle=idle)
        if i in saved:
            clock = StreamClock.decode(clock.encode(), readers, shards)
        came = sent[: i + 1]
        expected = oracle(came, readers, shards, expected)
        assert clock.watermark() == expected
        ends = [contiguous(came, r, s)[-1:] for r in range(readers) for s in range(shards)]
        assert clock.read_at() == (min(e[0][0].read_at for e in ends) if all(ends) else None)
    assert clock.gaps() == 0


def test_a_watermark_counts_once_all_messages_before_it_are_there():
    clock = StreamClock(1, 2)
    for received, watermark in (
        (message(0, 0, 0, 10), None),
        (message(0, 1, 1, 20), None),
        (message(0, 1, 0, 10), 10),
        (message(0, 0, 3, 40), 10),
        (message(0, 0, 2, 30), 10),
        (message(0, 0, 1, 20), 20),
        (message(0, 1, 2, 5), 20),
        (message(0, 1, 3, None), 20),
        (message(0, 1, 4, 35), 35),
    ):
        clock.receive(received)
        assert clock.watermark() == watermark, received


def test_a_reader_that_does_not_know_yet_blocks_and_one_that_is_idle_or_at_its_end_does_not():
    clock = StreamClock(2, 1)
    clock.receive(message(0, 0, 0, 100))
    clock.receive(message(1, 0, 0, None))
    assert clock.watermark() is None
    clock.receive(message(1, 0, 1, None), idle=True)
    assert clock.watermark() == 100
    clock.receive(message(1, 0, 2, 70))
    clock.receive(message(0, 0, 1, 200))
    assert clock.watermark() == 100
    clock.receive(message(1, 0, 3, 150), idle=True)
    assert clock.watermark() == 200
    clock.receive(message(0, 0, 2, final=True))
    assert clock.watermark() == 200
    clock.receive(message(1, 0, 4, 160, final=True))
    assert clock.watermark() == END


def test_polls_that_came_too_early_are_kept_as_runs():
    clock = StreamClock(1, 1)
    for poll in (9, 5, 7, 6, 3, 8):
        clock.receive(message(poll=poll, watermark=poll))
    assert clock.gaps() == 2
    for poll in range(10, 500):
        clock.receive(message(poll=poll, watermark=poll))
    assert clock.gaps() == 2
    assert len(clock.encode()) < 160
    for poll in (0, 1, 2):
        clock.receive(message(poll=poll, watermark=poll))
    assert clock.watermark() == 3
    clock.receive(message(poll=4, watermark=4))
    assert (clock.watermark(), clock.gaps()) == (499, 0)


@pytest.mark.parametrize("poll", [0, 1, 4, 5, 6])
def test_a_message_that_comes_twice_is_refused(poll):
    clock = StreamClock(1, 1)
    for number in (0, 1, 4, 5, 6):
        clock.receive(message(poll=number))
    with pytest.raises(ValueError, match=f"reader 0, shard 0: poll {poll} came twice; the runner must"):
        clock.receive(message(poll=poll))


def test_many_senders_are_encoded_in_nine_bytes_each():
    clock = StreamClock(64, 256)
    hour = 3_600_000_000
    for reader in range(64):
        for shard in range(256):
            lag = shard % 100
            mark = 10**15 - lag * hour // 100
            clock._pass(reader * 256 + shard, _Run(10**6 - lag, 10**6 - lag, mark, 10**15 + lag, False))
    encoded = clock.encode()
    assert len(encoded) < 64 * 256 * 9.3
    again = StreamClock.decode(encoded, 64, 256)
    assert again.encode() == encoded
    assert again.watermark() == clock.watermark() == 10**15 - 99 * hour // 100


def test_other_numbers_of_readers_and_shards_are_refused():
    clock = StreamClock(2, 3)
    with pytest.raises(
        ConfigError, match=r"saved clock is of 2 readers and 3 shards .* this job has 3 and 3"
    ):
        StreamClock.decode(clock.encode(), 3, 3)
    for wrong in (message(2), message(shard=3), message(poll=-1)):
        with pytest.raises(ValueError, match="this clock is of 2 readers and 3 shards"):
            clock.receive(wrong)
    for readers, shards, text in ((0, 1, "readers=0"), (1, 1025, "shards=1025"), (True, 1, "readers=True")):
        with pytest.raises(ConfigError, match=f"{text}: must be a whole number from 1 to 1024"):
            StreamClock(readers, shards)
