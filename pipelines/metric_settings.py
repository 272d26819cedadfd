"""Window tables in a configuration: ready-made ones by name, and definitions of your own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from headrace.pipelines.settings import about, build, check
from headrace.runners.suggest import suggest
from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.window_definitions import KINDS, Count, Ratio, Top, Windows


@dataclass(frozen=True, kw_only=True)
class TopConfig:
    """Of each window only the largest groups."""

    k: int = field(metadata=about("How many groups.", minimum=1))
    measure: str = field(metadata=about("The measure that decides."))
    within: list[str] = field(
        default_factory=list, metadata=about("Columns of `by` whose groups are ranked apart.")
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """A window table."""

    size_seconds: float = field(default=60.0, metadata=about("Length of a window.", minimum=0.001))
    every_seconds: float | None = field(
        default=None,
        metadata=about(
            "Time between the starts of two windows; shorter than the size, they slide; null: they tumble."
        ),
    )
    by: list[str] = field(default_factory=list, metadata=about("Columns to group by."))
    where: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "Aggregate only events with these values: column to value or list of values; '*' stands for any characters, "
            "and alone for any value but null."
        ),
    )
    measures: dict[str, Any] = field(
        metadata=about(
            "Column of the table to what it holds: count, or a table of one of count, distinct, sum, mean, min, max, quantiles "
            "with the column, or ratio with two measures; and where; q with quantiles; exact with distinct."
        )
    )
    top: TopConfig | None = field(default=None, metadata=about("Keep only the largest groups."))

    def __post_init__(self) -> None:
        check(self)


def windows_from(metrics: Mapping[str, Any], columns: Iterable[str] | None = None) -> dict[str, Windows]:
    """Builds the window tables that a configuration asks for.

    Args:
        metrics: name → null for the ready-made table of this name, or the settings of ``MetricConfig``.
        columns: what the events have; None: the lake's columns without profiles.

    Raises:
        ConfigError: unknown name, column or measure; the message has the key path and the fix.
    """
    known = set(ENRICHED_SCHEMA.names if columns is None else columns)
    return {name: _windows(name, given, known) for name, given in metrics.items()}


def _windows(name: str, given: Any, columns: set[str]) -> Windows:
    place = f"metrics.{name}"
    if given is None:
        if name not in METRICS:
            raise ConfigError(
                f"{place} is null, but no window table of this name is ready-made; {suggest(name, METRICS)}"
            )
        return METRICS[name]
    config: MetricConfig = build(MetricConfig, given, "configuration", place)
    try:
        windows = Windows(
            timedelta(seconds=config.size_seconds),
            tuple(config.by),
            {n: _measure(n, m, f"measures.{n}") for n, m in config.measures.items()},
            config.where,
            None if config.every_seconds is None else timedelta(seconds=config.every_seconds),
            None if config.top is None else Top(config.top.k, config.top.measure, tuple(config.top.within)),
        )
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    for column in windows.columns():
        if column not in columns:
            raise ConfigError(f"{place}: the events have no column {column!r}; {suggest(column, columns)}")
    return windows


def _measure(name: str, given: Any, place: str) -> Any:
    if given == "count":
        return Count()
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place} is {given!r}; write count, or a table such as {{distinct: user_id}}")
    kinds = [key for key in given if key in KINDS]
    if len(kinds) != 1:
        unknown = next((key for key in given if key not in (*KINDS, "where", "q", "exact")), None)
        hint = f"; {suggest(str(unknown), KINDS)}" if unknown is not None else ""
        raise ConfigError(f"{place}: name one of {', '.join(KINDS)}, once; found {list(given)}{hint}")
    kind = kinds[0]
    options = {key: value for key, value in given.items() if key != kind}
    allowed = {"quantiles": {"q", "where"}, "distinct": {"exact", "where"}, "ratio": set()}.get(
        kind, {"where"}
    )
    for key in options:
        if key not in allowed:
            raise ConfigError(
                f"{place}: {key!r} can't stand with {kind}; possible: {', '.join(sorted(allowed)) or 'nothing'}"
            )
    value = given[kind]
    if kind == "count":
        if value is not True:
            raise ConfigError(
                f"{place}.count is {value!r}; write `count: true`, and what to count under `where`"
            )
        return Count(**options)
    if kind == "ratio":
        if not (isinstance(value, list) and len(value) == 2):
            raise ConfigError(f"{place}.ratio is {value!r}; write the names of two measures: [buyers, users]")
        return Ratio(*(str(part) for part in value))
    if not isinstance(value, str):
        raise ConfigError(f"{place}.{kind} is {value!r}; write the name of a column")
    if kind == "quantiles" and "q" in options:
        options["q"] = tuple(options["q"]) if isinstance(options["q"], list) else (options["q"],)
    return KINDS[kind](value, **options)
