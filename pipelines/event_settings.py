"""The settings that every pipeline over events has, in batch and stream: what decides which rows come out."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.pipelines.settings import about, check
from headrace.schemas.errors import ConfigError

Compression = Literal["zstd", "snappy", "none"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _business_rules() -> dict[str, str]:
    from headrace.transforms.filter_events import BUSINESS_RULES

    return dict(BUSINESS_RULES)


def _ready_metrics() -> dict[str, Any]:
    from headrace.transforms.ready_windows import METRICS

    return dict.fromkeys(METRICS)


@dataclass(frozen=True, kw_only=True)
class ProfilesConfig:
    """A dimension with one row for each user, or for each user and time, joined as of the event's time."""

    path: str = field(metadata=about("Parquet or CSV file of user profiles; a CSV file has a header."))
    key_column: str = field(
        default="user_id",
        metadata=about(
            "Column that holds the user's id as the events state it; it is tokenised for the join."
        ),
    )
    valid_from_column: str | None = field(
        default=None,
        metadata=about(
            "Column with the time from which a row holds, if profiles change; null if each user has one row."
        ),
    )
    columns: list[str] | None = field(
        default=None, metadata=about("Columns to add to the events; null adds all others.")
    )
    prefix: str = field(default="profile_", metadata=about("Put before the names of the added columns."))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class EventSettings:
    """Settings of the stages, the lake and the workers.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting and the fix.
    """

    output: str = field(
        default="",
        metadata=about(
            "Folder to write to. It is made if it is missing; one that another input or configuration made is refused.",
            identity=False,
        ),
    )
    schema: str | None = field(
        default=None,
        metadata=about(
            "Family that all events are held against, NAME or NAME:VERSION (`headrace schemas list`); "
            "null finds it event by event."
        ),
    )
    mapping: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "Maps records of your own onto the envelope's columns: target column to source path, or to a table "
            "with `from`, `cast`, `default` and `map`, or `value` for a constant (see `headrace.connectors.map_fields`)."
        ),
    )
    max_age_seconds: int = field(
        default=86_400,
        metadata=about("Events older than the reference time by more are rejected as stale.", minimum=0),
    )
    max_ahead_seconds: int = field(
        default=300,
        metadata=about("Events ahead of the reference time by more are rejected as future.", minimum=0),
    )
    rules: dict[str, str] = field(
        default_factory=_business_rules,
        metadata=about(
            "What no valid event does, name to SQL condition over the lake's columns; an event for which one is true is "
            "rejected with that name. What you give replaces all default rules."
        ),
    )
    filter: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            "Low-value events to leave out, name to SQL condition; an event for which one is true is rejected "
            "with that name, and so counted."
        ),
    )
    metrics: dict[str, Any] = field(
        default_factory=_ready_metrics,
        metadata=about(
            "Window tables, written to OUT/metrics/NAME: name to null for a ready-made one, or to a definition of your own "
            "(docs/windows.md). What you give replaces the default ones."
        ),
    )
    profiles: ProfilesConfig | None = field(
        default=None, metadata=about("User profiles to join; null joins none.")
    )
    country_database: str | None = field(
        default=None,
        metadata=about(
            "MMDB file for the country of an address; null uses the packaged registry assignments."
        ),
    )
    key_file: str | None = field(
        default=None,
        metadata=about(
            "Secret key for tokens and sealed documents; null uses $HEADRACE_KEY_FILE, else ~/.config/headrace/key "
            "(`headrace key create`).",
            identity=False,
        ),
    )
    compression: Compression = field(
        default="zstd", metadata=about("Compression of the Parquet files written.")
    )
    max_record_bytes: int = field(
        default=16 * 2**20,
        metadata=about("A longer record is quarantined without being parsed.", minimum=2**10),
    )
    shared_paths: bool = field(
        default=False,
        metadata=about(
            "Says that every path here names the same file on all of the runner's workers (a network file system); "
            "without it a runner with workers elsewhere is refused.",
            identity=False,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        for section in ("rules", "filter"):
            for name in getattr(self, section):
                if not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{section}: {name!r} can't be a reason code; use lower-case letters, digits and '_', "
                        "beginning with a letter"
                    )
        for name in self.metrics:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"metrics: {name!r} can't be a table's name; use lower-case letters, digits and '_', beginning with a letter"
                )
        both = sorted(set(self.rules) & set(self.filter))
        if both:
            raise ConfigError(f"{both[0]!r} is in rules and in filter; give each its own name")
        if self.schema is not None:
            from headrace.schemas.registry import Registry

            Registry.default().get(self.schema)

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        paths = {"output": self.output}
        if self.key_file is not None:
            paths["key_file"] = self.key_file
        if self.profiles is not None:
            paths["profiles.path"] = self.profiles.path
        if self.country_database is not None:
            paths["country_database"] = self.country_database
        return paths
