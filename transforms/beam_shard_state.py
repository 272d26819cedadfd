"""Beam's user state as the streaming kernels see it, and the base of the DoFns that run them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from types import MappingProxyType
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.timestamp import Timestamp


class BeamShardState:
    """A :class:`ShardState <headrace.transforms.shard_state.ShardState>` over the state of the element's key.

    Reads see the writes made before in the same bundle; nothing is kept if the bundle fails. Good during one call of ``process``.

    Args:
        cell: a ReadModifyWriteRuntimeState of bytes.
        slots: BagRuntimeStates of bytes.
    """

    def __init__(self, cell: Any, slots: Sequence[Any] = ()) -> None:
        self._cell = cell
        self._slots = slots

    def read_cell(self) -> bytes | None:
        value: bytes | None = self._cell.read()
        return value

    def write_cell(self, value: bytes) -> None:
        self._cell.write(value)

    def read_slot(self, slot: int) -> Iterable[bytes]:
        return list(self._slots[slot].read())

    def add_to_slot(self, slot: int, value: bytes) -> None:
        self._slots[slot].add(value)

    def clear_slot(self, slot: int) -> None:
        self._slots[slot].clear()


class StatefulShardFn(beam.DoFn):
    """Base of a DoFn over (key, value) that keeps one cell and some slots of bytes for each key.

    A subclass says how many slots it has and implements ``handle``; it does not define ``process``::

        class ShardFn(StatefulShardFn, slots=27):
            def handle(self, key, value, state): ...

    Beam finds state by the parameters of ``process`` and wants one for each, so ``process`` is made for the class, with a
    signature of that many. State is named ``cell`` and ``slot0``, ``slot1``, … in savepoints; a class may get more slots
    later, never fewer. Further parameters that Beam knows can be asked for by name, and are given to ``handle`` as keywords::

        class CommitFn(StatefulShardFn, slots=1, more={"finalizer": beam.DoFn.BundleFinalizerParam}):
            def handle(self, key, value, state, *, finalizer=None): ...

    With timers, ``handle`` gets each under its name, and ``fired`` is called when one fires::

        class WindowFn(StatefulShardFn, slots=32, timers={"due": TimeDomain.WATERMARK}):
            def handle(self, key, value, state, *, due=None): ...

            def fired(self, timer, at, key, state, *, due=None): ...

    Beam reads every parameter's state lazily, but makes an object for each slot, key and bundle: ask for no more than needed.
    Type hints are not taken from ``handle``: give them to ``ParDo(…).with_output_types``. Keys need a deterministic coder, as
    int and str have. Input in the GlobalWindow, or state is kept for each window.
    """

    def __init_subclass__(
        cls,
        *,
        slots: int | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
        timers: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        if slots is None and not more and not timers:
            return
        number = slots or 0
        specs = [ReadModifyWriteStateSpec("cell", BytesCoder())]
        specs += [BagStateSpec(f"slot{i}", BytesCoder()) for i in range(number)]
        state = {spec.name: beam.DoFn.StateParam(spec) for spec in specs}
        timer_specs = {name: TimerSpec(name, domain) for name, domain in timers.items()}
        given = {name: beam.DoFn.TimerParam(spec) for name, spec in timer_specs.items()}
        cls.process = _make_process(number, state | given | dict(more))
        for name, spec in timer_specs.items():
            method = _make_callback(name, number, state | given)
            setattr(cls, method.__name__, on_timer(spec)(method))

    def handle(self, *element: Any, **more: Any) -> Iterator[Any]:
        """Yields what ``process`` yields for one element.

        Args:
            element: its key, its value, and the :class:`ShardState <headrace.transforms.shard_state.ShardState>` of the key.
            more: the timers and the further parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} must define handle")

    def fired(self, *firing: Any, **timers: Any) -> Iterator[Any]:
        """Yields what comes of a timer that fired.

        Args:
            firing: the timer's name, the Timestamp that it was set to, the key, and the key's state.
            timers: all timers of the key.
        """
        raise NotImplementedError(f"{type(self).__name__} must define fired")


def _make_process(slots: int, params: Mapping[str, Any]) -> Any:
    """Returns a ``process`` with a cell, ``slots`` bags and the further parameters in its signature."""
    names = list(params)[slots + 1 :]

    def process(self: StatefulShardFn, element: tuple[Any, Any], *given: Any) -> Iterator[Any]:
        state = BeamShardState(given[0], given[1 : slots + 1])
        return self.handle(*element, state, **dict(zip(names, given[slots + 1 :], strict=True)))

    process.__signature__ = _signature(["self", "element"], params)  # type: ignore[attr-defined]
    return process


def _make_callback(timer: str, slots: int, params: Mapping[str, Any]) -> Any:
    """Returns the method that Beam calls when ``timer`` fires."""
    names = list(params)

    def callback(self: StatefulShardFn, *, at: Timestamp, key: Any, **given: Any) -> Iterator[Any]:
        state = BeamShardState(given["cell"], [given[f"slot{i}"] for i in range(slots)])
        return self.fired(timer, at, key, state, **{name: given[name] for name in names[slots + 1 :]})

    callback.__name__ = f"on_{timer}"
    callback.__signature__ = _signature(  # type: ignore[attr-defined]
        ["self"], {"at": beam.DoFn.TimestampParam, "key": beam.DoFn.KeyParam, **params}
    )
    return callback


def _signature(first: Sequence[str], params: Mapping[str, Any]) -> Signature:
    kind = Parameter.POSITIONAL_OR_KEYWORD
    return Signature(
        [
            *(Parameter(name, kind) for name in first),
            *(Parameter(name, kind, default=param) for name, param in params.items()),
        ]
    )
