"""The configuration of the streaming pipeline."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.settings import about
from headrace.schemas.errors import ConfigError

StreamFormat = Literal["auto", "json", "weblog"]
Accumulation = Literal["accumulating", "discarding", "retracting"]

MOST_READERS, MOST_SHARDS = 64, 256


@dataclass(frozen=True, kw_only=True)
class StreamConfig(EventSettings):
    """Everything that decides what a stream reads, does and writes.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting and the fix.
    """

    source: str = field(
        default="",
        metadata=about(
            "Stream to read: kafka://HOST:PORT/TOPIC, pubsub://PROJECT/SUBSCRIPTION or dir:PATH, with options after a `?` "
            "(docs/sources.md)."
        ),
    )
    format: StreamFormat = field(
        default="auto",
        metadata=about(
            "What a record holds: one JSON document, or a line of a web log; auto takes what the source's address says, else "
            "json. The files of dir: are of any kind that a batch reads."
        ),
    )
    sink: list[str] = field(
        default_factory=list,
        metadata=about(
            "Topics that get every accepted event as JSON beside the lake: kafka://HOST:PORT/TOPIC or "
            "pubsub://PROJECT/topics/TOPIC. At least once: after a crash events come again, with the same event_id, which is "
            "the key. The stream waits for a sink that is away; none of its events is dropped.",
            identity=False,
        ),
    )
    quarantine_sink: str | None = field(
        default=None,
        metadata=about(
            "Topic that gets every rejected row as JSON: where it came from, stage, reason and message, and its sealed document "
            "in base64. At least once, as `sink`.",
            identity=False,
        ),
    )
    compact_seconds: float = field(
        default=60.0,
        metadata=about(
            "How often small files of the output's tables are made into larger ones while the stream runs; 0: never, then run "
            "`headrace lake compact OUT`. Commits get slower with each thousand files.",
            minimum=0,
            identity=False,
        ),
    )
    readers: int = field(
        default=1,
        metadata=about(
            "Readers that share the source's partitions; more use more cores.", minimum=1, identity=False
        ),
    )
    shards: int = field(
        default=8,
        metadata=about(
            "Shards of dedupe state; each message costs a read of state for each shard, each shard is worked on by one "
            "core at a time.",
            minimum=1,
            identity=False,
        ),
    )
    window_shards: int = field(
        default=2,
        metadata=about("Shards of each window table, by the hash of the group.", minimum=1, identity=False),
    )
    dedupe_seconds: int = field(
        default=86_400,
        metadata=about("How long an event's id is remembered, in ingest time; at least.", minimum=60),
    )
    watermark_delay_seconds: int = field(
        default=30,
        metadata=about(
            "How far event times may be out of order within a partition before they count as late.", minimum=0
        ),
    )
    idle_seconds: int = field(
        default=60,
        metadata=about(
            "A partition that is read to its end and gives nothing for this long no longer holds the watermark back.",
            minimum=1,
        ),
    )
    allowed_lateness_seconds: int = field(
        default=300,
        metadata=about(
            "How long after the watermark has passed a window's end its events still count; later ones go to OUT/late, and "
            "to the lake like all.",
            minimum=0,
        ),
    )
    early_seconds: int = field(
        default=30,
        metadata=about(
            "How often a window that is not over is written with what it has; 0: never.",
            minimum=0,
            identity=False,
        ),
    )
    accumulation: Accumulation = field(
        default="accumulating",
        metadata=about(
            "What each firing of a window has: accumulating, all of it, so that the last one counts; discarding, what came since "
            "the one before; retracting, the rows that changed, first as they were (column retraction), then as they are."
        ),
    )
    poll_rows: int = field(
        default=16_384,
        metadata=about(
            "Most records of one poll. Fewer lower the latency, more the cost.", minimum=1, identity=False
        ),
    )
    poll_seconds: float = field(
        default=0.5,
        metadata=about(
            "Time between two polls of a reader that has caught up. Less lowers the latency, more the cost: a poll costs some "
            "50 ms of CPU whatever it holds.",
            minimum=0.01,
            identity=False,
        ),
    )
    commit_seconds: float = field(
        default=2.0,
        metadata=about(
            "How often files become rows of the lake where the runner takes no checkpoints (Prism); with checkpoints each "
            "one is followed by a commit.",
            minimum=0,
            identity=False,
        ),
    )
    poison_attempts: int = field(
        default=5,
        metadata=about(
            "A poll whose processing ended the worker this many times is quarantined whole.",
            minimum=1,
            identity=False,
        ),
    )
    max_events: int | None = field(
        default=None,
        metadata=about("Stop after about this many records, for trials.", minimum=1, identity=False),
    )
    until: str | None = field(
        default=None,
        metadata=about(
            "Stop once all records that reached the source before this time are read: a time (2026-01-05T13:00:00Z), "
            "`now`, or a duration from now (10m).",
            identity=False,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("readers", MOST_READERS), ("shards", MOST_SHARDS)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name} is {getattr(self, name)}; it may be {most} at most")
        if self.until is not None:
            end_of(self.until, datetime.fromtimestamp(0).astimezone())

    def require_paths(self) -> None:
        """Raises ConfigError if source or output is not given."""
        if not self.source:
            raise ConfigError("no source: name a stream with --source kafka://HOST:PORT/TOPIC or dir:PATH")
        if not self.output:
            raise ConfigError("no output: name a folder with --output OUT or `output` in the configuration")

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        paths = super().local_paths()
        if self.source.startswith("dir:"):
            paths["source"] = self.source.removeprefix("dir:").partition("?")[0]
        return paths


def end_of(until: str, now: datetime) -> datetime:
    """Returns the time that ``until`` means.

    Raises:
        ConfigError: it is no time, duration or ``now``.
    """
    if until == "now":
        return now
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = until[:-1], until[-1:]
    if unit in units and number.isascii() and number.isdigit():
        return now + timedelta(seconds=int(number) * units[unit])
    try:
        time = datetime.fromisoformat(until)
    except ValueError:
        raise ConfigError(
            f"until is {until!r}; give a time with its zone (2026-01-05T13:00:00Z), `now`, or a duration (90s, 10m, 2h)"
        ) from None
    if time.tzinfo is None:
        raise ConfigError(f"until is {until} without a zone; add one, for example {until}Z")
    return time
