"""State through Beam: the base of the DoFns of a stream."""

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.userstate import get_dofn_specs, is_stateful_dofn

from headrace.transforms.beam_shard_state import BeamShardState, StatefulShardFn

from .collect import collect


class CountFn(StatefulShardFn, slots=3):
    """Keeps all values in slot (value % 3) and their number in the cell; yields what it sees."""

    def handle(self, key, value, state):
        slot = value % 3
        if value == 99:
            state.clear_slot(0)
            state.add_to_slot(0, b"again")
        else:
            state.add_to_slot(slot, b"%d" % value)
        count = int(state.read_cell() or b"0") + 1
        state.write_cell(b"%d" % count)
        yield key, count, [sorted(state.read_slot(i)) for i in range(3)]


class CellFn(StatefulShardFn, slots=0, more={"stamp": beam.DoFn.TimestampParam, "name": beam.DoFn.KeyParam}):
    def handle(self, key, value, state, *, stamp=None, name=None):
        last = state.read_cell()
        state.write_cell(value)
        yield name, last, value, stamp.micros


class ChildFn(CountFn):
    def handle(self, key, value, state):
        yield from (("child", *rest) for _, *rest in super().handle(key, value, state))


def test_each_class_has_state_of_its_own_number():
    def names(fn):
        return sorted(spec.name for spec in get_dofn_specs(fn)[0])

    assert names(CountFn()) == names(ChildFn()) == ["cell", "slot0", "slot1", "slot2"]
    assert names(CellFn()) == ["cell"]
    assert is_stateful_dofn(CellFn())


def test_a_subclass_without_handle_says_so():
    class EmptyFn(StatefulShardFn, slots=1):
        pass

    with pytest.raises(NotImplementedError, match="EmptyFn must define handle"):
        list(EmptyFn().process((1, 2), None, None))


@pytest.mark.parametrize("stream", [False, True], ids=["fn api", "bundle based"])
def test_reads_see_writes_and_keys_do_not_meet(stream):
    values = [("a", 1), ("a", 3), ("b", 5), ("a", 4), ("a", 99)]

    def build(pipeline):
        keyed = pipeline | beam.Create(values, reshuffle=False)
        return {"seen": keyed | beam.ParDo(CountFn())}

    seen = sorted(e.value for e in collect(build, stream=stream)["seen"])
    assert [s[:2] for s in seen] == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1)]
    assert seen[4][2] == [[], [], [b"5"]]
    if not stream:  # The bundle-based runner shuffles the elements of a key.
        assert [s[2][:2] for s in seen[:4]] == [
            [[], [b"1"]],
            [[b"3"], [b"1"]],
            [[b"3"], [b"1", b"4"]],
            [[b"again"], [b"1", b"4"]],
        ]


def test_further_parameters_are_given_by_name():
    def build(pipeline):
        keyed = pipeline | beam.Create([("k", b"x")], reshuffle=False)
        return {"seen": keyed | beam.ParDo(CellFn())}

    (element,) = collect(build)["seen"]
    assert element.value == ("k", None, b"x", element.micros)


def test_a_class_of_a_notebook_is_shipped_with_its_state():
    """Classes outside of modules are pickled by value."""

    class LocalFn(StatefulShardFn, slots=2):
        def handle(self, key, value, state):
            state.add_to_slot(1, value)
            yield len(list(state.read_slot(1)))

    fn = pickler.loads(pickler.dumps(LocalFn()))
    assert sorted(s.name for s in get_dofn_specs(fn)[0]) == ["cell", "slot0", "slot1"]


def test_a_bundle_that_is_repeated_finds_its_state_rolled_back():
    with beam.Pipeline(runner=FnApiRunner(bundle_repeat=2)) as pipeline:
        counts = pipeline | beam.Create([("a", 1), ("a", 4)], reshuffle=False) | beam.ParDo(CountFn())
        assert_that(counts | beam.Map(lambda s: s[1]), equal_to([1, 2]))


class FakeCell:
    def __init__(self):
        self.value = None

    def read(self):
        return self.value

    def write(self, value):
        self.value = value


def test_a_cell_alone():
    state = BeamShardState(FakeCell())
    assert state.read_cell() is None
    state.write_cell(b"x")
    assert state.read_cell() == b"x"
