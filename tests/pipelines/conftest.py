"""What the tests of the batch pipeline share: a key, a simulated input, and kernels that are set up once."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.pipelines.definition import Definition
from headrace.simulator.simulate import simulate
from headrace.transforms.base import Kernel
from headrace.transforms.keys import Key


@dataclass(frozen=True)
class Simulated:
    """A simulated input with its truth."""

    path: Path
    data: bytes
    truth: dict[str, Any]


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    Key(path, create=True)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """240 lines in which every verdict occurs."""
    simulation = simulate(240, 11, fault_rate=0.5)
    data = b"".join(simulation)
    path = tmp_path_factory.mktemp("small") / "events.jsonl"
    path.write_bytes(data)
    truth = simulation.summary.to_dict()
    assert min(truth["classes"].values()) > 0
    return Simulated(path, data, truth)


_MADE: dict[tuple[object, ...], list[Kernel]] = {}
"""Kernels that are set up, by what they were made from. Setting up takes 0.4 s: country and user-agent patterns, schemas."""


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets all runs of the tests that ask for it share kernels, which hold no state but caches and monotone counts."""

    def kernels(make: Any, name: str) -> Any:
        @functools.wraps(make)
        def cached(self: Definition, *arguments: str, **named: bool) -> list[Kernel]:
            if self.profiles is not None:
                return list(make(self, *arguments, **named))
            times = (self.max_age, self.max_ahead)
            rules = (tuple(self.rules.items()), tuple(self.filter.items()))
            made_from = (
                name,
                arguments,
                tuple(named.items()),
                self.key.fingerprint,
                self.schema,
                times,
                self.country_database,
                rules,
            )
            if made_from not in _MADE:
                _MADE[made_from] = make(self, *arguments, **named)
            return _MADE[made_from]

        return cached

    for name in ("before_dedupe", "after_dedupe"):
        monkeypatch.setattr(Definition, name, kernels(getattr(Definition, name), name))
