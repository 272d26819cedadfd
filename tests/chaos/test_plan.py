from collections import Counter

import pytest

from tests.chaos.faults import _FAULTS
from tests.chaos.plan import CALM_SECONDS, HOLD_SECONDS, KILLS, OTHERS, plan


@pytest.mark.parametrize("runner", sorted(KILLS))
def test_every_kind_comes_before_one_comes_again(runner: str) -> None:
    faults = plan(7, 20, runner)
    found = Counter(fault.kind for fault in faults)
    kills = [found[kind] for kind in KILLS[runner]]
    others = [found[kind] for kind in OTHERS[runner]]
    assert (sum(kills), sum(others)) == (20, 10)
    assert max(kills) - min(kills) <= 1
    assert max(others) - min(others) <= 1
    assert all(HOLD_SECONDS[0] <= fault.hold_seconds <= HOLD_SECONDS[1] for fault in faults)
    assert all(CALM_SECONDS[0] <= fault.calm_seconds <= CALM_SECONDS[1] for fault in faults)


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan(7, 20, "flink") == plan(7, 20, "flink")
    assert plan(7, 20, "flink") != plan(8, 20, "flink")


def test_the_disk_is_left_alone_where_it_is_not_the_outputs_own() -> None:
    kinds = [fault.kind for fault in plan(7, 0, "flink", others=9)]
    assert kinds.count("fill_disk") == 1
    assert "fill_disk" not in [fault.kind for fault in plan(7, 0, "flink", others=9, disk=False)]


def test_all_kinds_can_be_done() -> None:
    named = {kind for kinds in (*KILLS.values(), *OTHERS.values()) for kind in kinds}
    assert named == set(_FAULTS)
