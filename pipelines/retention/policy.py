"""How long each kind of data is kept: ``headrace retention apply --policy FILE``."""

from dataclasses import dataclass, field, fields

from headrace.pipelines.settings import about, check
from headrace.schemas.errors import ConfigError

SAFETY_HOURS = 24


@dataclass(frozen=True)
class Ages:
    """Ages of one kind of data, in days since the UTC date that it counts to."""

    hot_days: int = field(
        metadata=about(
            "Dates older than this leave their table: for the cold place, if there is one.", minimum=1
        )
    )
    cold_days: int = field(
        metadata=about(
            "Dates older than this leave the cold place for good; not less than hot_days.", minimum=1
        )
    )
    cold: str | None = field(
        default=None,
        metadata=about(
            "Folder for the cold tables, `COLD/NAME/TABLE` with the output's name. null: what leaves its table is deleted."
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.cold_days < self.hot_days:
            raise ConfigError(
                f"cold_days is {self.cold_days}, hot_days {self.hot_days}; both count from the date of the rows, so cold_days is "
                "not less"
            )


@dataclass(frozen=True)
class Audit:
    """Where proofs are kept beyond the life of their output."""

    cold: str | None = field(
        default=None,
        metadata=about(
            "Folder to which ledgers, manifests and the records of replays and retention are copied with every application, "
            "`COLD/NAME/audit`. null: they are only where they were written."
        ),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Policy:
    """The policy of ``headrace retention apply``."""

    raw: Ages = field(
        default=Ages(7, 90), metadata=about("Events: the lake of batches, streams and backfills.")
    )
    quarantine: Ages = field(default=Ages(7, 90), metadata=about("Rejected rows."))
    aggregates: Ages = field(
        default=Ages(30, 730),
        metadata=about("Window tables, corrections, late rows, and nightly tables without users."),
    )
    users: Ages = field(
        default=Ages(90, 90), metadata=about("Nightly tables by user: user_sessions and user_daily_metrics.")
    )
    audit: Audit = field(
        default=Audit(),
        metadata=about("Proofs: copied, and never taken out of an output, whose later proofs need them."),
    )
    safety_hours: int = field(
        default=SAFETY_HOURS,
        metadata=about(
            "How long files that left a Delta table stay on disk, for readers that have opened it and for time travel.",
            minimum=1,
        ),
    )

    def __post_init__(self) -> None:
        check(self)

    def ages(self, kind: str) -> Ages:
        """Returns the ages of a kind of data."""
        found: Ages = getattr(self, kind)
        return found


KINDS = tuple(f.name for f in fields(Policy) if isinstance(f.default, Ages))
