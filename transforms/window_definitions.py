"""What to aggregate over event-time windows: plain data, without Arrow or Beam."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from headrace.schemas.errors import ConfigError

PANE = "pane"
"""Name of the window's column in a partial; no result column may have it."""


@dataclass(frozen=True)
class Count:
    """Number of rows."""


@dataclass(frozen=True)
class Distinct:
    """Number of distinct values of a string or dictionary column; null is no value."""

    column: str


@dataclass(frozen=True)
class Sum:
    """Exact sum of a decimal or integer column as decimal128(38, 9); null if a group has no value."""

    column: str


Measure = Count | Distinct | Sum


@dataclass(frozen=True)
class Windows:
    """What to aggregate.

    Args:
        size: length of the tumbling windows; they start at multiples of it since 1970-01-01T00:00Z.
        by: columns to group by.
        measures: result column → measure.
        where: count only rows in which this column is not null; ``None``: all rows.

    Raises:
        ConfigError: a size that is not positive or not in whole milliseconds, no measure, or a name used twice.
    """

    size: timedelta = timedelta(minutes=1)
    by: tuple[str, ...] = ("event_type",)
    measures: Mapping[str, Measure] = field(
        default_factory=lambda: {
            "events": Count(),
            "unique_users": Distinct("user_id"),
            "revenue": Sum("revenue"),
        }
    )
    where: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, timedelta) or self.size <= timedelta(0):
            raise ConfigError(
                f"size={self.size!r}: must be a timedelta above zero, e.g. timedelta(minutes=1)"
            )
        if self.size % timedelta(milliseconds=1):
            raise ConfigError(
                f"size={self.size!r}: must be whole milliseconds; Beam's windows know nothing finer"
            )
        if isinstance(self.by, str):
            raise ConfigError(f"by={self.by!r}: must be a tuple of column names, e.g. ({self.by!r},)")
        if not self.measures:
            raise ConfigError("measures={}: name at least one, e.g. {'events': Count()}")
        for name, measure in self.measures.items():
            if not isinstance(measure, Count | Distinct | Sum):
                raise ConfigError(
                    f"measures[{name!r}]={measure!r}: must be Count(), Distinct(column) or Sum(column)"
                )
        names = [PANE, "window_start", "window_end", *self.by, *self.measures]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ConfigError(
                f"by={self.by!r}, measures={list(self.measures)}: {twice} would be columns twice; rename"
            )

    @property
    def size_us(self) -> int:
        """The size in microseconds."""
        return self.size // timedelta(microseconds=1)

    def columns(self) -> list[str]:
        """Returns the input columns that are read."""
        named = [m.column for m in self.measures.values() if not isinstance(m, Count)]
        return list(dict.fromkeys(["event_time", *self.by, *named, *([self.where] if self.where else [])]))


METRICS: dict[str, Windows] = {
    "events_per_minute": Windows(measures={"events": Count(), "unique_users": Distinct("user_id")}),
    "revenue_per_minute": Windows(by=("event_type", "currency"), where="revenue"),
}
"""The metrics of the batch pipeline: events and users by type; revenue, refunds negative, by type and currency."""
