"""What every worker needs to know about a stream."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from xxhash import xxh32_hexdigest

from headrace.connectors.map_fields import FieldMapping
from headrace.connectors.stream_sinks import Sink
from headrace.connectors.stream_source import Source
from headrace.pipelines.definition import Definition
from headrace.pipelines.streaming.seed import Seed
from headrace.transforms.window_definitions import Windows
from headrace.transforms.window_shard import Accumulation

DRAIN, FINISH, HOLD, SEEDED = "drain", "finish", "hold", "seeded"
_SEED_POLLS = "seed-polls"


@dataclass(frozen=True)
class StreamTask:
    """Picklable; the same for every worker and every restart of one job."""

    output: str
    number: int
    """0 for the output's first job, then 1, 2, …"""
    job: str
    """Names this job in the tables' transactions and in the names of its files; a job that starts anew has a new one."""
    run: str
    """Names this run of the job, from its start by a launcher to its end."""
    source: Source
    positions: tuple[str, ...]
    """First position of each reader."""
    definition: Definition
    mapping: FieldMapping | None
    compression: str
    shards: int
    window_shards: int
    horizon: timedelta
    watermark_delay_us: int
    idle_us: int
    allowed_lateness_us: int
    early_seconds: float
    accumulation: Accumulation
    poll_rows: int
    poll_seconds: float
    commit_us: int
    poison_attempts: int
    max_events: int | None = None
    until_us: int | None = None
    checkpoints: str | None = None
    """URL of Flink's REST interface, which says which checkpoints are complete; None on runners without checkpoints."""
    retries_bundles: bool = False
    """True on a runner that tries a failed bundle again from the state before it, and has no checkpoints: Dataflow."""
    seed: Seed | None = None
    """What of the lake is put back into the state before the first poll; None: nothing is."""
    sinks: tuple[Sink, ...] = ()
    """What gets the accepted events beside the lake."""
    quarantine_sinks: tuple[Sink, ...] = ()
    """What gets the rejected rows beside the quarantine."""

    @staticmethod
    def name_of(output: str, job: str) -> str:
        """Returns a job's name on a cluster that others use too."""
        return f"headrace-{xxh32_hexdigest(output.encode())}-{job}"

    @property
    def job_name(self) -> str:
        return self.name_of(self.output, self.job)

    @property
    def readers(self) -> int:
        return len(self.positions)

    @property
    def metrics(self) -> list[tuple[str, Windows]]:
        """The window tables in a fixed order, by which they are numbered."""
        return sorted(self.definition.metrics.items())

    @property
    def window_keys(self) -> int:
        """How many window shards there are: each has all tables."""
        return self.window_shards if self.definition.metrics else 0

    @property
    def control(self) -> "Control":
        return Control(Path(self.output) / "_control" / self.job)


class Control:
    """How the launcher speaks to the readers: files in ``OUT/_control``, which every worker reaches anyway.

    Args:
        folder: of one job.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, what: str) -> None:
        """Asks the readers to stop reading (``drain``: windows stay open; ``finish``: they are closed), or tells that the seed has
        arrived (``seeded``)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / what).touch()

    def asked(self) -> str | None:
        """Returns what was asked; None: go on."""
        try:
            found = os.listdir(self._folder)
        except FileNotFoundError:
            return None
        return next((what for what in (FINISH, DRAIN, HOLD) if what in found), None)

    def hold(self, hold: bool) -> None:
        """Asks the readers to read nothing for the time being, or to go on."""
        if hold:
            self.ask(HOLD)
        else:
            (self._folder / HOLD).unlink(missing_ok=True)

    @property
    def seeded(self) -> bool:
        """True once the launcher has seen the first reader's seed arrive."""
        return (self._folder / SEEDED).exists()

    def tell_seed(self, polls: int) -> None:
        """Notes, from the first reader, with how many polls it has seeded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f".{_SEED_POLLS}.{os.getpid()}"
        aside.write_text(str(polls))
        os.replace(aside, self._folder / _SEED_POLLS)

    def seed_polls(self) -> int | None:
        """Returns with how many polls the first reader has seeded; None while it has not come to the end of the seed."""
        try:
            return int((self._folder / _SEED_POLLS).read_text())
        except FileNotFoundError:
            return None

    def clear(self) -> None:
        """Takes back what was asked."""
        for what in (DRAIN, FINISH, HOLD):
            (self._folder / what).unlink(missing_ok=True)
