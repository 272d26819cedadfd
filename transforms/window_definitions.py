"""What to aggregate over event-time windows: plain data, without Arrow or Beam."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from headrace.schemas.errors import ConfigError
from headrace.transforms.conditions import Conditions, columns_of, conditions

PANE = "pane"
"""Name of the pane's column in a partial; no result column may have it."""
MOST_PANES = 1440
"""A window may be made of so many panes."""


@dataclass(frozen=True)
class Count:
    """Number of rows."""

    where: Any = None


@dataclass(frozen=True)
class Distinct:
    """Number of distinct values of a string or dictionary column; null is no value.

    Exact up to ``exact`` values of a group. Beyond that it is estimated from the ``exact + 1`` smallest of the values' 128-bit
    hashes (the KMV sketch of Bar-Yossef et al., 2002, which theta sketches generalise): the same for any order and cut of the
    rows. The result has a second column, ``NAME_error``: relative, 95 of 100 estimates are as near; 0 if exact.
    """

    column: str
    where: Any = None
    exact: int = 65_536


@dataclass(frozen=True)
class Sum:
    """Exact sum of a decimal or integer column as decimal128(38, 9); null if a group has no value."""

    column: str
    where: Any = None


@dataclass(frozen=True)
class Mean:
    """Sum divided by the number of values, decimal128(38, 9) rounded half to even; null if a group has no value."""

    column: str
    where: Any = None


@dataclass(frozen=True)
class Min:
    """Smallest value of a decimal, integer or time column, in the column's type; null if a group has no value."""

    column: str
    where: Any = None


@dataclass(frozen=True)
class Max:
    """Largest value; as ``Min``."""

    column: str
    where: Any = None


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of a decimal or integer column as float64 columns ``NAME_p50`` and so on; null if a group has no value.

    The q-quantile is the smallest value that at least the q-th part of all values does not exceed. Values are counted in buckets,
    128 to each power of two (as HdrHistogram and OpenTelemetry's exponential histograms do), and the middle of a bucket is given:
    at most 0.4 % off. The same for any order and cut of the rows.
    """

    column: str
    q: tuple[float, ...] = (0.5, 0.95, 0.99)
    where: Any = None


@dataclass(frozen=True)
class Ratio:
    """One measure of the same definition divided by another, float64; null if the divisor is zero or null."""

    numerator: str
    denominator: str


Measure = Count | Distinct | Sum | Mean | Min | Max | Quantiles | Ratio
KINDS: dict[str, type] = {
    "count": Count,
    "distinct": Distinct,
    "sum": Sum,
    "mean": Mean,
    "min": Min,
    "max": Max,
    "quantiles": Quantiles,
    "ratio": Ratio,
}


@dataclass(frozen=True)
class Top:
    """Of each window only the ``k`` groups with the largest measure; exact, since all groups are counted until then.

    The result has one more column, ``rank`` (int32, from 1): by the measure, largest first and null last, then by the groups'
    values, smallest first and null last.

    Args:
        k: how many.
        measure: name of a Count, Distinct, Sum, Mean, Min or Max of the definition.
        within: rank these groups of the ``by`` columns apart.
    """

    k: int
    measure: str
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Windows:
    """What to aggregate.

    Conditions (``where``) are as in :func:`conditions <headrace.transforms.conditions.conditions>`: ``{"event_type":
    ["page_view"]}``.

    Args:
        size: length of the windows.
        by: columns to group by.
        measures: result column → measure.
        where: aggregate only rows that fulfil this; each measure may have a further one.
        every: a window begins at each multiple of it since 1970-01-01T00:00Z; None: of ``size``, so that they tumble. Shorter than
            the size: they slide.
        top: keep only the largest groups.

    Raises:
        ConfigError: a size that is not positive or not in whole milliseconds, no measure, a measure that can't be, or a name used
        twice.
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
    where: Any = None
    every: timedelta | None = None
    top: Top | None = None

    def __post_init__(self) -> None:
        _check_duration("size", self.size)
        if self.every is not None:
            _check_duration("every", self.every)
            if self.every > self.size:
                raise ConfigError(
                    f"every={self.every!r} is longer than size={self.size!r}: events between two windows would be in none"
                )
            if self.size_us // self.pane_us > MOST_PANES:
                raise ConfigError(
                    f"size={self.size!r} every={self.every!r}: windows of {self.size_us // self.pane_us} panes of "
                    f"{self.pane_us / 1e6:g} s; at most {MOST_PANES}: use a longer `every`"
                )
        if isinstance(self.by, str):
            raise ConfigError(f"by={self.by!r}: must be a tuple of column names, e.g. ({self.by!r},)")
        object.__setattr__(self, "by", tuple(self.by))
        object.__setattr__(self, "where", _conditions(self.where, "where"))
        if not self.measures:
            raise ConfigError("measures={}: name at least one, e.g. {'events': Count()}")
        object.__setattr__(self, "measures", {n: self._checked(n, m) for n, m in self.measures.items()})
        for name, measure in self.measures.items():
            if isinstance(measure, Ratio):
                self._check_ratio(name, measure)
        if self.top is not None:
            self._check_top(self.top)
        names = [
            PANE,
            "window_start",
            "window_end",
            *self.by,
            *(c for n in self.measures for c in self.names_of(n)),
        ]
        names += ["rank"] if self.top is not None else []
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ConfigError(
                f"by={self.by!r}, measures={list(self.measures)}: {twice} would be columns twice; rename"
            )

    def _checked(self, name: str, measure: Any) -> Measure:
        place = f"measures[{name!r}]"
        if not isinstance(measure, Measure):
            raise ConfigError(
                f"{place}={measure!r}: must be one of {', '.join(k.__name__ for k in KINDS.values())}"
            )
        if isinstance(measure, Distinct) and (
            isinstance(measure.exact, bool) or not isinstance(measure.exact, int) or measure.exact < 16
        ):
            raise ConfigError(f"{place}: exact={measure.exact!r} must be a whole number of 16 or more")
        if isinstance(measure, Quantiles):
            if not measure.q or not all(isinstance(q, float | int) and 0 < q < 1 for q in measure.q):
                raise ConfigError(
                    f"{place}: q={measure.q!r} must be numbers between 0 and 1, e.g. (0.5, 0.95)"
                )
            object.__setattr__(measure, "q", tuple(measure.q))
        if not isinstance(measure, Ratio):
            object.__setattr__(measure, "where", _conditions(measure.where, f"{place}.where"))
        return measure

    def _check_ratio(self, name: str, ratio: Ratio) -> None:
        for part in (ratio.numerator, ratio.denominator):
            if not isinstance(self.measures.get(part), Count | Distinct | Sum | Mean | Min | Max):
                raise ConfigError(
                    f"measures[{name!r}]: {part!r} is no count, distinct, sum, mean, min or max among the measures "
                    f"{list(self.measures)}"
                )

    def _check_top(self, top: Top) -> None:
        if isinstance(top.k, bool) or not isinstance(top.k, int) or top.k < 1:
            raise ConfigError(f"top: k={top.k!r} must be a whole number of 1 or more")
        if not isinstance(self.measures.get(top.measure), Count | Distinct | Sum | Mean | Min | Max):
            raise ConfigError(
                f"top: {top.measure!r} is no count, distinct, sum, mean, min or max among the measures {list(self.measures)}"
            )
        if isinstance(top.within, str) or not set(top.within) < set(self.by):
            raise ConfigError(f"top: within={top.within!r} must be some of by={self.by!r}, not all")

    @property
    def size_us(self) -> int:
        """The size in microseconds."""
        return self.size // timedelta(microseconds=1)

    @property
    def every_us(self) -> int:
        """Time between the starts of two windows in microseconds."""
        return self.size_us if self.every is None else self.every // timedelta(microseconds=1)

    @property
    def pane_us(self) -> int:
        """Length in microseconds of the panes that windows are made of: the longest that divides both."""
        return math.gcd(self.size_us, self.every_us)

    @property
    def slides(self) -> bool:
        """True if an event is in more than one window."""
        return self.every_us != self.size_us

    @property
    def together(self) -> tuple[str, ...]:
        """The columns of which rows with equal values must be in one place for the result to be right."""
        return self.by if self.top is None else self.top.within

    @property
    def panes(self) -> "Windows":
        """The tumbling definition of which this one's partials are; definitions with equal ones can share them."""
        return replace(self, size=timedelta(microseconds=self.pane_us), every=None, top=None)

    @staticmethod
    def parts_of(name: str, measure: Measure) -> list[str]:
        """Returns the columns of a measure in a partial."""
        if isinstance(measure, Ratio):
            return []
        return [f"{name}_sum", f"{name}_count"] if isinstance(measure, Mean) else [name]

    def names_of(self, name: str) -> list[str]:
        """Returns the columns of a measure in the result."""
        measure = self.measures[name]
        if isinstance(measure, Distinct):
            return [name, f"{name}_error"]
        if isinstance(measure, Quantiles):
            return [f"{name}_p{100 * q:g}".replace(".", "_") for q in measure.q]
        return [name]

    def columns(self) -> list[str]:
        """Returns the input columns that are read."""
        named = [m.column for m in self.measures.values() if not isinstance(m, Count | Ratio)]
        tested = columns_of(
            self.where, *(m.where for m in self.measures.values() if not isinstance(m, Ratio))
        )
        return list(dict.fromkeys(["event_time", *self.by, *named, *tested]))


def _check_duration(name: str, value: object) -> None:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise ConfigError(f"{name}={value!r}: must be a timedelta above zero, e.g. timedelta(minutes=1)")
    if value % timedelta(milliseconds=1):
        raise ConfigError(f"{name}={value!r}: must be whole milliseconds; Beam's windows know nothing finer")


def _conditions(given: Any, place: str) -> Conditions:
    if isinstance(given, tuple):
        return given
    return conditions(given, place)
