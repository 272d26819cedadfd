"""The plan of faults: a function of the seed."""

import random
from dataclasses import dataclass

KILLS: dict[str, tuple[str, ...]] = {
    "flink": (
        "kill_taskmanager",
        "kill_workers",
        "kill_jobmanager",
        "kill_broker",
        "kill_launcher",
        "kill_pool",
    ),
    "prism": ("kill_launcher", "kill_prism", "kill_broker"),
}
"""Faults by SIGKILL."""
OTHERS: dict[str, tuple[str, ...]] = {
    "flink": (
        "stop_and_restart",
        "cut_network",
        "fill_disk",
        "pause_taskmanager",
        "pause_workers",
        "pause_broker",
        "pause_jobmanager",
        "silence_network",
        "slow_network",
    ),
    "prism": (
        "stop_and_restart",
        "cut_network",
        "fill_disk",
        "pause_broker",
        "pause_prism",
        "silence_network",
        "slow_network",
    ),
}
"""Faults that pass: the process, the network or the disk comes back."""
HOLD_SECONDS = (5.0, 10.0)
CALM_SECONDS = (2.0, 6.0)


@dataclass(frozen=True)
class Planned:
    """One fault."""

    kind: str
    calm_seconds: float
    """How long nothing is done after the stream has recovered from the fault before."""
    hold_seconds: float
    """How long a fault lasts that passes."""


def plan(
    seed: int, kills: int, runner: str, *, others: int | None = None, disk: bool = True
) -> list[Planned]:
    """Returns the faults in their order.

    Args:
        kills: how many are by SIGKILL. Every kind comes once before one comes again.
        runner: ``flink`` or ``prism``.
        others: how many of the kinds that pass; default: half as many as kills.
        disk: whether the disk of the output can be filled.

    Raises:
        KeyError: the runner has no plan.
    """
    chance = random.Random(f"{runner} {seed}")
    passing = [kind for kind in OTHERS[runner] if disk or kind != "fill_disk"]
    kinds = _dealt(chance, KILLS[runner], kills)
    for kind in _dealt(chance, passing, kills // 2 if others is None else others):
        kinds.insert(chance.randint(0, len(kinds)), kind)
    return [
        Planned(kind, round(chance.uniform(*CALM_SECONDS), 1), round(chance.uniform(*HOLD_SECONDS), 1))
        for kind in kinds
    ]


def _dealt(chance: random.Random, kinds: tuple[str, ...] | list[str], number: int) -> list[str]:
    dealt: list[str] = []
    while len(dealt) < number:
        dealt += chance.sample(kinds, len(kinds))
    return dealt[:number]
