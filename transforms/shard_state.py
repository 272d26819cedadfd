"""State of one key of a stateful DoFn as the streaming kernels see it, so that they are tested without a runner.

Beam's Python SDK has no map state and reading a large bag for each batch is quadratic, so a kernel keeps one small *cell* and
a few append-only *slots*, and an index of them in process memory. The runner may roll state back at any time (a failed bundle, a
restore), and memory does not follow. The rule that makes this exact: the cell carries a random version; an index is valid
only while its version equals the cell's, else it is rebuilt from the slots; the index is *taken out of the cache before it is
changed* and put back under the new version at the end.
"""

from collections.abc import Iterable
from typing import Protocol


class ShardState(Protocol):
    """One cell and numbered bags of bytes. Reads see the writes made before in the same call."""

    def read_cell(self) -> bytes | None: ...

    def write_cell(self, value: bytes) -> None: ...

    def read_slot(self, slot: int) -> Iterable[bytes]: ...

    def add_to_slot(self, slot: int, value: bytes) -> None: ...

    def clear_slot(self, slot: int) -> None: ...


class MemoryState:
    """State in memory, for tests and for rebuilding: ``copy`` is a checkpoint."""

    def __init__(self) -> None:
        self.cell: bytes | None = None
        self.slots: dict[int, list[bytes]] = {}

    def read_cell(self) -> bytes | None:
        return self.cell

    def write_cell(self, value: bytes) -> None:
        self.cell = value

    def read_slot(self, slot: int) -> Iterable[bytes]:
        return list(self.slots.get(slot, []))

    def add_to_slot(self, slot: int, value: bytes) -> None:
        self.slots.setdefault(slot, []).append(value)

    def clear_slot(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def copy(self) -> "MemoryState":
        """Returns an independent copy."""
        other = MemoryState()
        other.cell = self.cell
        other.slots = {slot: list(values) for slot, values in self.slots.items()}
        return other
