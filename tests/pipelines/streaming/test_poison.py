import json
import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipelines.streaming.poison import MOST, POISON, Attempts, quarantine_whole, run_kernels
from headrace.schemas.columns import QUARANTINE_SCHEMA, RAW_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.base import Outcome
from headrace.transforms.batches import conform
from headrace.transforms.keys import Key
from headrace.transforms.rejects import no_rejects, rejected

SECRET = "jane.doe@example.org"


class Failing:
    """Raises on batches with one of these positions; rejects the multiples of seven."""

    name = "decode"

    def __init__(self, *positions: int, error: Exception | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.positions, self.error, self.calls = set(positions), error or ValueError(SECRET), 0

    def setup(self) -> None: ...

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        self.calls += 1
        positions = batch.column("origin_position").to_pylist()
        if self.positions & set(positions):
            raise self.error
        gone = batch.filter(pa.array([position % 7 == 0 for position in positions], pa.bool_()))
        kept = batch.filter(pa.array([position % 7 != 0 for position in positions], pa.bool_()))
        return Outcome(kept, rejected(gone, "decode", "seven") if gone.num_rows else no_rejects())


def batch(rows: int) -> pa.RecordBatch:
    positions = range(1, rows + 1)
    return conform(
        {
            "raw": pa.array([f"{SECRET} {i}".encode() for i in positions]),
            "origin": pa.array(["t/0"] * rows),
            "origin_position": pa.array(positions, pa.int64()),
        },
        RAW_SCHEMA,
        rows,
    )


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("key") / "key", create=True)


def positions(*batches: pa.RecordBatch) -> list[int]:
    return sorted(p for b in batches for p in b.column("origin_position").to_pylist())


def test_just_the_rows_that_fail_are_quarantined(key: Key, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        accepted, rejects = run_kernels([Failing(3, 20)], batch(30), key)
    poison = [b for b in rejects if b.column("reason")[0].as_py() == POISON]
    assert positions(*poison) == [3, 20]
    assert positions(accepted, *rejects) == list(range(1, 31))
    assert positions(*rejects) == [3, 7, 14, 20, 21, 28]
    row = poison[0].to_pylist()[0]
    assert (row["stage"], row["reason"]) == ("decode", POISON)
    assert row["message"] == "the stage failed on this event with ValueError; report it as a bug"
    assert key.unseal(row["document"]) == f"{SECRET} 3".encode()
    assert SECRET.encode() not in row["document"] and SECRET not in caplog.text
    assert "stage decode failed on an event with ValueError; it is quarantined" in caplog.text


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.sets(st.integers(1, 60), max_size=6))
def test_every_row_ends_in_one_place(key: Key, rows: int, bad: set[int]) -> None:
    accepted, rejects = run_kernels([Failing(*bad)], batch(rows), key)
    assert positions(accepted, *rejects) == list(range(1, rows + 1))
    expected = [p for p in range(1, rows + 1) if p not in bad and p % 7]
    assert accepted.column("origin_position").to_pylist() == expected
    assert all(b.schema.equals(QUARANTINE_SCHEMA) for b in rejects)


def test_a_sound_batch_is_not_halved(key: Key) -> None:
    kernel = Failing()
    run_kernels([kernel], batch(64), key)
    assert kernel.calls == 1


def test_the_next_kernel_gets_what_is_left(key: Key) -> None:
    second = Failing(5)
    accepted, rejects = run_kernels([Failing(1, 2, 3, 4), second], batch(6), key)
    assert accepted.column("origin_position").to_pylist() == [6]
    assert positions(*rejects) == [1, 2, 3, 4, 5]
    third = Failing()
    nothing, _ = run_kernels([Failing(1), third], batch(1), key)
    assert nothing.num_rows == third.calls == 0


def test_a_stage_that_fails_on_everything_fails_the_bundle(key: Key) -> None:
    with pytest.raises(ValueError, match=SECRET):
        run_kernels([Failing(*range(1, 200))], batch(199), key)
    accepted, rejects = run_kernels([Failing(*range(1, MOST + 1))], batch(MOST), key)
    assert accepted.num_rows == 0 and len(positions(*rejects)) == MOST


@pytest.mark.parametrize("error", [ConfigError("no database"), OSError("disk"), MemoryError()])
def test_what_is_about_the_set_up_is_no_poison(key: Key, error: Exception) -> None:
    with pytest.raises(type(error)):
        run_kernels([Failing(3, error=error)], batch(9), key)


def test_a_batch_without_rows_that_fails_is_a_bug_of_the_stage(key: Key) -> None:
    class Never(Failing):
        def __call__(self, batch: pa.RecordBatch) -> Outcome:
            raise KeyError("x")

    with pytest.raises(KeyError):
        run_kernels([Never()], batch(0), key)


def test_after_masking_the_masked_columns_are_kept_and_no_document(key: Key) -> None:
    masked = batch(4).select(["origin", "origin_position", "ingest_time"])
    kernel = Failing(2)
    kernel.name = "rules"
    _, rejects = run_kernels([kernel], masked, key)
    (row,) = rejects[0].to_pylist()
    assert (row["stage"], row["document"], row["origin_position"]) == ("rules", None, 2)


def test_a_poll_that_ends_the_worker_is_quarantined_whole_and_sealed(
    key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        rejects = quarantine_whole(batch(3), key, 5)
    assert Counter(rejects.column("reason").to_pylist()) == {POISON: 3}
    assert [key.unseal(d) for d in rejects.column("document").to_pylist()] == batch(3).column(
        "raw"
    ).to_pylist()
    assert "ended the worker 5 times" in rejects.column("message")[0].as_py()
    assert SECRET not in caplog.text and "3 records" in caplog.text
    assert not any(SECRET in str(v) for c in rejects.columns for v in c.to_pylist())


def test_attempts_survive_a_crash_and_are_of_one_poll(tmp_path: Path) -> None:
    path = tmp_path / "_control" / "reader-0.json"
    assert [Attempts(path).begin(7) for _ in range(3)] == [0, 1, 2]
    assert Attempts(path).begin(8) == 0
    Attempts(path).end()
    assert not path.exists()
    Attempts(path).end()
    assert Attempts(path).begin(8) == 0
    assert [p.name for p in path.parent.iterdir()] == ["reader-0.json"]


@pytest.mark.parametrize("left", ["", "{", "{}", json.dumps({"poll": 1})])
def test_half_a_note_counts_as_none(left: str, tmp_path: Path) -> None:
    path = tmp_path / "reader-0.json"
    path.write_text(left)
    assert Attempts(path).begin(1) == 0
    assert Attempts(path).begin(1) == 1
