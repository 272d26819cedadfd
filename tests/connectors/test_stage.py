import contextlib
import os
import resource

import pyarrow as pa
import pytest

from headrace.connectors.atomic_file import OutputError
from headrace.connectors.stage import StageWriter, read_stage
from headrace.schemas.columns import CODE, EVENT_SCHEMA
from headrace.transforms.batches import conform


def events(ids, browsers):
    columns = {"event_id": pa.array(ids), "category": pa.array(browsers).dictionary_encode()}
    return conform(columns, EVENT_SCHEMA, len(ids))


@contextlib.contextmanager
def files_of_at_most(size_bytes):
    """Makes real writes fail once a file passes the size: what a full disk does, without filling one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_batches_come_back_with_their_own_dictionaries(tmp_path):
    path = tmp_path / "deep" / "000001.arrow"
    batches = [
        events(["a", "b"], ["x", "y"]),
        events(["c"], ["z"]),
        events(["d", "e", "f"], [None, "x", "z"]),
        events(["g"], [None]),
    ]
    with StageWriter(path) as stage:
        for batch in batches:
            stage.write(batch)
        assert stage.rows == 7
        assert not path.exists()
    read = list(read_stage(path))
    assert [b.num_rows for b in read] == [2, 1, 3, 1]
    assert all(b.schema == EVENT_SCHEMA for b in read)
    table = pa.Table.from_batches(read)
    assert table.column("event_id").to_pylist() == list("abcdefg")
    assert table.column("category").to_pylist() == ["x", "y", "z", None, "x", "z", None]


def test_a_slice_is_written_as_its_own_rows(tmp_path):
    big = events([f"{i:036d}" for i in range(10_000)], ["x"] * 10_000)
    with StageWriter(tmp_path / "s") as stage:
        stage.write(big.slice(5_000, 3))
    (batch,) = read_stage(tmp_path / "s")
    assert batch.column("event_id").to_pylist() == [f"{i:036d}" for i in (5_000, 5_001, 5_002)]
    assert os.path.getsize(tmp_path / "s") < 20_000


def test_equal_batches_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        with StageWriter(tmp_path / name) as stage:
            stage.write(events(["a", None], ["x", "y"]))
            stage.write(events(["b"], ["y"]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_rows_give_no_file_and_remove_one_of_an_earlier_attempt(tmp_path):
    path = tmp_path / "s"
    with StageWriter(path) as stage:
        stage.write(events(["a"], ["x"]))
    with StageWriter(path) as stage:
        stage.write(events([], []).slice(0, 0))
    assert stage.rows == 0
    assert not path.exists()
    assert list(read_stage(path)) == []


def test_closing_twice_keeps_the_file(tmp_path):
    stage = StageWriter(tmp_path / "s")
    stage.write(events(["a"], ["x"]))
    stage.close()
    stage.close()
    assert sum(b.num_rows for b in read_stage(tmp_path / "s")) == 1


def test_an_exception_in_the_body_leaves_what_was_there(tmp_path):
    path = tmp_path / "s"
    with StageWriter(path) as stage:
        stage.write(events(["old"], ["x"]))
    with pytest.raises(RuntimeError), StageWriter(path) as stage:
        stage.write(events(["new"], ["x"]))
        raise RuntimeError
    (batch,) = read_stage(path)
    assert batch.column("event_id").to_pylist() == ["old"]
    assert os.listdir(tmp_path) == ["s"]


def test_another_schema_is_refused(tmp_path):
    stage = StageWriter(tmp_path / "s")
    stage.write(pa.record_batch({"a": pa.array(["x"], CODE)}))
    with pytest.raises(ValueError, match="batch after row 1 has another schema"):
        stage.write(pa.record_batch({"a": pa.array([1])}))
    stage.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [100, 3_000])
def test_a_full_disk_leaves_no_half_file(tmp_path, room):
    stage = StageWriter(tmp_path / "s")
    with (
        pytest.raises(OutputError, match=r"/s can't be written: File too large; make room"),
        files_of_at_most(room),
    ):
        stage.write(events([f"{i}" for i in range(5_000)], ["x"] * 5_000))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_at_the_last_byte_leaves_no_half_file(tmp_path):
    stage = StageWriter(tmp_path / "s")
    stage.write(events(["a"], ["x"]))
    (half,) = tmp_path.iterdir()
    with pytest.raises(OutputError), files_of_at_most(half.stat().st_size):
        stage.close()
    assert os.listdir(tmp_path) == []


def test_a_stage_may_be_removed_while_it_is_read(tmp_path):
    with StageWriter(tmp_path / "s") as stage:
        stage.write(events(["a"], ["x"]))
        stage.write(events(["b"], ["y"]))
    rest = read_stage(tmp_path / "s")
    first = next(rest)
    os.unlink(tmp_path / "s")
    assert [b.column("event_id").to_pylist() for b in (first, *rest)] == [["a"], ["b"]]


def test_a_file_that_is_no_stream_is_an_error(tmp_path):
    (tmp_path / "s").write_bytes(b"PAR1")
    with pytest.raises(pa.ArrowInvalid):
        list(read_stage(tmp_path / "s"))
