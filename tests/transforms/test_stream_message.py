"""Messages come back as they were sent, one by one and several in one element."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.stream_message import Message, pack_all, unpack_all

BATCHES = [
    None,
    pa.RecordBatch.from_pydict({"n": pa.array([1, 2, None], pa.int64())}),
    pa.RecordBatch.from_pydict({"t": pa.array(["a", "b", "a"]).dictionary_encode()}).slice(1, 1),
]
TIMES = st.integers(-(1 << 62), 1 << 62)
MESSAGES = st.builds(
    Message,
    reader=st.integers(0, 1023),
    shard=st.integers(0, 1023),
    poll=st.integers(0, 1 << 40),
    watermark=st.none() | TIMES,
    ingest_position=st.none() | TIMES,
    read_at=TIMES,
    batch=st.sampled_from(BATCHES),
    final=st.booleans(),
    idle=st.booleans(),
    seed=st.booleans(),
)


@given(MESSAGES)
def test_a_message_comes_back(message: Message) -> None:
    assert Message.unpack(message.pack()) == message


@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_messages_come_back_in_their_order(messages: list[Message]) -> None:
    assert unpack_all(pack_all(messages)) == messages


def test_rows_of_a_slice_are_its_own() -> None:
    column = pa.array(["x" * 1000] * 100)
    batch = pa.RecordBatch.from_pydict({"t": column})
    whole, part = (len(Message(0, 0, 0, None, None, 0, each).pack()) for each in (batch, batch.slice(7, 1)))
    assert part < 2000 < 100_000 < whole


def test_a_torn_element_is_refused() -> None:
    packed = pack_all([Message(0, 0, 0, None, None, 0, BATCHES[1])])
    with pytest.raises((ValueError, OSError)):
        unpack_all(packed[:-20])
