"""What every stage has in common: a pure kernel, a private DoFn around it, and two outputs."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from headrace.transforms.coders import register_coders


class Outcome(NamedTuple):
    """What a kernel returns: every input row is in exactly one of the two."""

    accepted: pa.RecordBatch
    rejected: pa.RecordBatch
    """Rows of ``QUARANTINE_SCHEMA``."""


class Results(NamedTuple):
    """What applying a transform returns."""

    accepted: PCollection
    """PCollection of RecordBatch."""
    rejected: PCollection
    """PCollection of RecordBatch with ``QUARANTINE_SCHEMA``."""


class LateResults(NamedTuple):
    """What applying a transform returns that has a guard against late rows."""

    accepted: PCollection
    """PCollection of RecordBatch: the results."""
    rejected: PCollection
    """PCollection of RecordBatch with ``QUARANTINE_SCHEMA``: events that can be in no result."""
    late: PCollection
    """PCollection of RecordBatch: what came after its result was final; empty for bounded input."""


class Kernel(Protocol):
    """A pure function of one batch; ``setup`` is called once per process before the first call."""

    name: str
    """The stage's name in ledger and quarantine."""

    counts: Counter[str]
    """What it counted since ``setup`` apart from rows in and out, for example failed lookups; monotone."""

    def setup(self) -> None: ...

    def __call__(self, batch: pa.RecordBatch) -> Outcome: ...


class _KernelFn(beam.DoFn):
    """Runs a kernel over each batch; an exception means a broken batch and fails the bundle."""

    def __init__(self, make: Callable[[], Kernel]) -> None:
        self._make = make

    def setup(self) -> None:
        self._kernel = self._make()
        self._kernel.setup()
        self._published: Counter[str] = Counter()

    def process(
        self, batch: pa.RecordBatch
    ) -> Iterator[pa.RecordBatch | TaggedOutput[Literal["rejected"], pa.RecordBatch]]:
        accepted, rejected = self._kernel(batch)
        self._publish(accepted.num_rows, rejected.num_rows)
        if accepted.num_rows:
            yield accepted
        if rejected.num_rows:
            yield TaggedOutput("rejected", rejected)

    def _publish(self, accepted: int, rejected: int) -> None:
        """Beam metrics are for watching: they count retries, so the ledger never reads them."""
        space = f"headrace.{self._kernel.name}"
        Metrics.counter(space, "accepted").inc(accepted)
        Metrics.counter(space, "rejected").inc(rejected)
        for name, count in (self._kernel.counts - self._published).items():
            Metrics.counter(space, name).inc(count)
        self._published = Counter(self._kernel.counts)


class StageTransform(beam.PTransform, ABC):
    """Base of the stages that are one kernel over each batch: stateless, any windowing, bounded or unbounded.

    A subclass checks its arguments in ``__init__`` and returns its kernel from ``kernel()``; the pipelines call the same
    kernels directly. Replay gives the same output.
    """

    @abstractmethod
    def kernel(self) -> Kernel:
        """Returns a new kernel; cheap, its heavy parts are built by ``Kernel.setup``."""

    @beam.typehints.no_annotations
    def expand(self, batches: PCollection) -> Results:
        register_coders()
        done = batches | "RunKernel" >> beam.ParDo(_KernelFn(self.kernel)).with_output_types(
            pa.RecordBatch, rejected=pa.RecordBatch
        ).with_outputs("rejected", main="accepted")
        return Results(done.accepted, done.rejected)
