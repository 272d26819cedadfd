import pyarrow as pa

from headrace.schemas.columns import CODE
from headrace.transforms.assign_position_ids import AssignPositionIds
from headrace.transforms.identity import position_ids


def batch(ids, generated, origins, positions):
    return pa.RecordBatch.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.array(generated, pa.bool_()),
            pa.array(origins, pa.string()).cast(CODE),
            pa.array(positions, pa.int64()),
        ],
        names=["event_id", "id_generated", "origin", "origin_position"],
    )


def run(*columns):
    return AssignPositionIds().kernel()(batch(*columns)).accepted


def test_only_generated_ids_change_and_equal_content_at_two_offsets_is_two_events():
    stated = "11111111-1111-4111-8111-111111111111"
    found = run(
        [stated, "x", "x", "x"], [False, True, True, True], ["t/0", "t/0", "t/0", "t/1"], [1, 2, 3, 2]
    )
    ids = found["event_id"].to_pylist()
    assert ids[0] == stated
    assert ids[1:] == position_ids(pa.array(["t/0", "t/0", "t/1"]), pa.array([2, 3, 2])).to_pylist()
    assert len(set(ids)) == 4


def test_the_same_position_gives_the_same_id_whatever_the_content():
    assert run(["a"], [True], ["t/0"], [5])["event_id"] == run(["b"], [True], ["t/0"], [5])["event_id"]


def test_without_a_position_the_id_of_the_content_stays():
    found = run(["a", "b", None], [True, None, None], ["t/0", "t/0", None], [None, 1, None])
    assert found["event_id"].to_pylist() == ["a", "b", None]
