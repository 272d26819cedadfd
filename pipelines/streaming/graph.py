"""The graph of the streaming pipeline."""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.periodicsequence import PeriodicImpulse

from headrace.pipelines.streaming.commit_fn import CommitFn, FinalizedCommitFn
from headrace.pipelines.streaming.read_fn import BUNDLE_SECONDS, ReadFn
from headrace.pipelines.streaming.shard_fn import ShardFn
from headrace.pipelines.streaming.stream_task import StreamTask
from headrace.pipelines.streaming.window_fn import WindowFn

HEARTBEAT_SECONDS = 0.1
KEYED = tuple[int, bytes]


class Heartbeats(beam.PTransform):
    """An endless stream of elements that mean nothing but "go on".

    Flink has a source of its own for it, without the splittable DoFn whose every residual leaves a name behind in Flink's
    state (docs/runner-bugs.md).

    Args:
        native: use Flink's.
    """

    def __init__(self, *, native: bool) -> None:
        super().__init__()
        self._native = native

    def expand(self, begin: PBegin) -> PCollection:
        if self._native:
            source = FlinkStreamingImpulseSource()
            source.config = {"interval_ms": round(HEARTBEAT_SECONDS * 1000)}
            return begin | "Impulses" >> source
        return begin | "Impulses" >> PeriodicImpulse(fire_interval=HEARTBEAT_SECONDS)


class _ToReadersFn(beam.DoFn):
    """Tells every reader of a heartbeat."""

    def __init__(self, readers: int) -> None:
        self._readers = readers

    def process(self, heartbeat: object) -> Iterator[KEYED]:
        for reader in range(self._readers):
            yield reader, b""


def assemble_stream(begin: PCollection, task: StreamTask, *, bundle_seconds: float = BUNDLE_SECONDS) -> None:
    """Adds the steps of ``docs/architecture.md``, section "Streaming pipeline", after a collection of heartbeats.

    Args:
        bundle_seconds: for how long a reader reads within one bundle.
    """
    commit = FinalizedCommitFn(task) if task.retries_bundles else CommitFn(task)
    read = (
        begin
        | "ToReaders" >> beam.ParDo(_ToReadersFn(task.readers)).with_output_types(KEYED)
        | "Read"
        >> beam.ParDo(ReadFn(task, bundle_seconds=bundle_seconds))
        .with_output_types(KEYED, commit=KEYED)
        .with_outputs("commit", main="messages")
    )
    sharded = read.messages | "Shard" >> beam.ParDo(ShardFn(task)).with_output_types(
        KEYED, commit=KEYED
    ).with_outputs("commit", main="messages")
    windows = sharded.messages | "Windows" >> beam.ParDo(WindowFn(task)).with_output_types(KEYED)
    _ = (
        (read.commit, sharded.commit, windows)
        | "ToCommit" >> beam.Flatten()
        | "Commit" >> beam.ParDo(commit).with_output_types(int)
    )
