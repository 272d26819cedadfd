"""Collects what a pipeline's PCollections hold; the embedded runner works in this process."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import TimestampedValue

_FOUND: dict[str, list] = {}


class Element(NamedTuple):
    """One element with its Beam timestamp in microseconds and its window."""

    value: object
    micros: int
    window: object


class Batches(beam.PTransform):
    """Creates batches; each of them a RecordBatch, or a (RecordBatch, timestamp in seconds)."""

    def __init__(self, batches: Iterable) -> None:
        super().__init__()
        self._batches = [b if isinstance(b, tuple) else (b, None) for b in batches]

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        stamped = begin | beam.Create(self._batches, reshuffle=False)
        return stamped | beam.ParDo(_StampFn()).with_output_types(pa.RecordBatch)


class _StampFn(beam.DoFn):
    def process(self, pair):
        batch, seconds = pair
        yield batch if seconds is None else TimestampedValue(batch, seconds)


class _CollectFn(beam.DoFn):
    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, value, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        _FOUND[self._name].append(Element(value, time.micros, window))


def collect(
    build: Callable[[beam.Pipeline], dict[str, beam.PCollection]], *, stream: bool = False
) -> dict[str, list[Element]]:
    """Runs the pipeline that ``build`` makes; returns the elements of the PCollections that it returns, by name.

    Streams run on the bundle-based runner, the one in this process that knows TestStream.
    """
    _FOUND.clear()
    runner = BundleBasedDirectRunner() if stream else FnApiRunner()
    with beam.Pipeline(runner=runner, options=PipelineOptions(streaming=stream)) as pipeline:
        for name, values in build(pipeline).items():
            _FOUND[name] = []
            values | f"Collect {name}" >> beam.ParDo(_CollectFn(name))
    return dict(_FOUND)
