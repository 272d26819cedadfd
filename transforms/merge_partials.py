"""Combining partial tables of one definition in Beam, without a pickle."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder

from headrace.transforms.coders import RecordBatchCoder

NOTHING = pa.RecordBatch.from_arrays([], names=[])
"""Of a key without partials, as a runner may fire when a window closes; gives no result."""

Merge = Callable[[Sequence[pa.RecordBatch], Any], pa.RecordBatch]
"""Merges one or more partials of a definition."""


class Partials:
    """An accumulator: partials not merged yet, and how many bytes they had when they were merged last."""

    def __init__(self, parts: list[pa.RecordBatch]) -> None:
        self.parts = parts
        self.merged_bytes = sum(p.nbytes for p in parts)


class PartialsCoder(Coder):
    """Encodes an accumulator as one merged partial in Arrow IPC; an empty one as no bytes."""

    def __init__(self, merge: Merge, definition: object) -> None:
        self._merge, self._definition = merge, definition
        self._batches = RecordBatchCoder()

    def encode(self, value: Partials) -> bytes:
        compact(value, self._merge, self._definition)
        return self._batches.encode(value.parts[0]) if value.parts else b""

    def decode(self, encoded: bytes) -> Partials:
        return Partials([self._batches.decode(encoded)] if encoded else [])

    def is_deterministic(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PartialsCoder)
            and other._merge is self._merge
            and other._definition == self._definition
        )

    def __hash__(self) -> int:
        return hash(type(self))


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class MergePartials(beam.CombineFn):
    """Merges partials; the result without any is ``NOTHING``.

    Args:
        merge: a function of a module, so that it can be pickled by name.
        definition: its second argument.
    """

    def __init__(self, merge: Merge, definition: object) -> None:
        self._merge, self._definition = merge, definition

    def create_accumulator(self) -> Partials:
        return Partials([])

    def add_input(self, mutable_accumulator: Partials, element: pa.RecordBatch) -> Partials:
        """Adds a partial; merges when the size has doubled, so that the work stays linear."""
        held = mutable_accumulator
        held.parts.append(element)
        if len(held.parts) > 64 and sum(p.nbytes for p in held.parts) > 2 * held.merged_bytes:
            compact(held, self._merge, self._definition)
        return held

    def merge_accumulators(self, accumulators: Iterable[Partials]) -> Partials:
        merged = Partials([])
        for accumulator in accumulators:
            for part in accumulator.parts:
                merged = self.add_input(merged, part)
        return merged

    def compact(self, accumulator: Partials) -> Partials:
        compact(accumulator, self._merge, self._definition)
        return accumulator

    def extract_output(self, accumulator: Partials) -> pa.RecordBatch:
        compact(accumulator, self._merge, self._definition)
        return accumulator.parts[0] if accumulator.parts else NOTHING

    def get_accumulator_coder(self) -> Coder:
        return PartialsCoder(self._merge, self._definition)


def compact(held: Partials, merge: Merge, definition: object) -> None:
    """Merges all parts into one."""
    if len(held.parts) > 1:
        held.parts = [merge(held.parts, definition)]
    held.merged_bytes = sum(p.nbytes for p in held.parts)
