"""The configuration of the backfill pipeline."""

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.settings import about
from headrace.schemas.errors import ConfigError

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class BackfillConfig(EventSettings):
    """Everything that decides what a backfill reads, does and writes.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting and the fix.
    """

    archive: str = field(
        default="",
        metadata=about(
            "Folder of the archive: Parquet in dated folders or side by side, or a Delta table.",
            identity=False,
        ),
    )
    first: str = field(
        default="", metadata=about("First event date (UTC) to write, as 2026-01-31.", identity=False)
    )
    last: str = field(default="", metadata=about("Last event date (UTC) to write.", identity=False))
    exclude: list[str] = field(
        default_factory=list,
        metadata=about(
            "Files of the archive to leave out: patterns of their paths in it, such as 'dt=2026-01-03/*'.",
            identity=False,
        ),
    )
    allow_missing: bool = field(
        default=False,
        metadata=about(
            "Go on although the archive has no file for some of the dates; they become empty.", identity=False
        ),
    )
    ingest_column: str = field(
        default="ingest_time",
        metadata=about(
            "Column with the time at which each row reached the archive, where a file has it: an event is stale or future against "
            "it, else against the end of its folder's date. It is no field of the event then. Empty: no such column."
        ),
    )
    now: datetime | None = field(
        default=None,
        metadata=about(
            "Reference time for files that lie in no dated folder and have no ingest times; only for these.",
            identity=False,
        ),
    )
    shards: int = field(
        default=64,
        metadata=about(
            "Shards of the dedupe; more need less memory at once, fewer are faster.",
            minimum=1,
            identity=False,
        ),
    )
    split_bytes: int = field(
        default=64 * 2**20,
        metadata=about(
            "Bytes of the archive that one task reads; it decides the files' sizes.", minimum=2**10
        ),
    )
    rows_at_once: int = field(
        default=4_000_000,
        metadata=about(
            "Rows of the dates that one job takes together; a date is never cut. It bounds the memory.",
            minimum=1,
            identity=False,
        ),
    )

    def require_paths(self) -> None:
        """Raises ConfigError if archive, output or dates are not given."""
        if not self.archive:
            raise ConfigError(
                "no archive: name its folder with --archive DIR or `archive` in the configuration"
            )
        if not self.output:
            raise ConfigError("no output: name a folder with --output OUT or `output` in the configuration")
        self.dates()

    def dates(self) -> list[date]:
        """Returns the dates to write, ascending.

        Raises:
            ConfigError: one is missing or no date, or they are swapped.
        """
        ends = []
        for option, text in (("--from", self.first), ("--to", self.last)):
            if not text:
                raise ConfigError(
                    f"{option} is missing; give the first and the last date with --from and --to"
                )
            try:
                ends.append(date.fromisoformat(text))
            except ValueError:
                raise ConfigError(f"{option}: {text!r} is no date; write it as 2026-01-31") from None
        first, last = ends
        if last < first:
            raise ConfigError(f"--from {first} is after --to {last}; swap them")
        return [first + ONE_DAY * n for n in range((last - first).days + 1)]

    @property
    def days_before(self) -> int:
        """How many folders before its date an event may lie in: it may be ahead of its arrival."""
        return -(-self.max_ahead_seconds // 86_400)

    @property
    def days_after(self) -> int:
        """How many folders after its date an event may lie in without being stale."""
        return -(-self.max_age_seconds // 86_400)

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        return {"archive": self.archive} | super().local_paths()
