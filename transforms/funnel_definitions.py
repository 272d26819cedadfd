"""What a funnel is: plain data, without Arrow or Beam."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from headrace.schemas.errors import ConfigError
from headrace.transforms.conditions import Conditions, columns_of, conditions

MOST_STEPS = 32
"""As many as windowFunnel takes; a row's steps are one bit each."""

LONGEST = timedelta(days=36_500)

OUTCOME = ("level", "times")
"""Columns of an outcome after the key and the groups."""

SUMMARY = (
    "step",
    "name",
    "users",
    "conversion",
    "step_conversion",
    "drop_off",
    "median_seconds",
)
"""Columns of a summary after the groups."""


@dataclass(frozen=True)
class FunnelSteps:
    """The steps of a funnel, and what joins events to a chain.

    A *chain* of level k is k different events of one user, each later than the one before in the order of
    (``event_time``, ``event_id``), of which the first fulfils the first step's conditions, the second the second's, and so on, the
    last at most ``within`` after the first. A user's level is that of the longest chain. An event may fulfil the conditions of
    several steps and takes any of these places, but never two in one chain.

    ``loose``: anything may lie between the events of a chain. It is ClickHouse's windowFunnel with the option ``strict_once``
    (https://clickhouse.com/docs/sql-reference/aggregate-functions/parametric-functions#windowfunnel), except that windowFunnel
    puts events of one time in the order of the steps, and this in the order of their ids.

    ``strict``: the events of a chain follow each other directly. Any other event of the user between them ends the chain: one that
    is no step, an earlier step again, the same step again, a later step. (With ``session`` only events of that session are between
    them.) A later first-step event begins a new chain. windowFunnel's ``strict_order`` differs in two ways: at the first such
    event it gives up the user, and it lets pass repetitions of steps that were reached before (A, B, A, C is A, B, C to it).
    Where no step happens twice to a user, both say the same.

    Args:
        steps: name → conditions on columns (:func:`headrace.transforms.conditions.conditions`), in order, 1 to 32.
        within: longest time from a chain's first event to its last; exactly this long is still within.
        order: ``loose`` or ``strict``.
        by: key columns, whose values name the user.
        session: a column that numbers or names a user's sessions; a chain then lies within one. None: no such limit.
        group_by: columns of a chain's first event by which summaries are grouped.

    Raises:
        ConfigError: an argument that is none of these; a step without conditions; a name used twice.

    Example:
        >>> FunnelSteps({"view": {"event_type": "product_view"}, "buy": {"event_type": "purchase"}}).names
        ('view', 'buy')
    """

    steps: Mapping[str, Mapping[str, object]]
    within: timedelta = timedelta(days=1)
    order: Literal["loose", "strict"] = "loose"
    by: tuple[str, ...] = ("user_id",)
    session: str | None = None
    group_by: tuple[str, ...] = ()
    conditions: tuple[Conditions, ...] = field(init=False)
    """The conditions of each step, read."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, Mapping) or not 1 <= len(self.steps) <= MOST_STEPS:
            raise ConfigError(
                f"steps={self.steps!r}: must be 1 to {MOST_STEPS} names with conditions, "
                "e.g. {'view': {'event_type': 'product_view'}, 'buy': {'event_type': 'purchase'}}"
            )
        for name, wanted in self.steps.items():
            if not isinstance(name, str) or not name:
                raise ConfigError(f"steps: {name!r} must be text, as it names a step")
            if not wanted:
                raise ConfigError(
                    f"steps[{name!r}]={wanted!r}: any event would be this step; if that is meant, write {{'event_id': '*'}}"
                )
        check_duration("within", self.within)
        if self.order not in ("loose", "strict"):
            raise ConfigError(f"order={self.order!r}: must be 'loose' or 'strict'")
        check_columns("by", self.by, least=1)
        check_columns("group_by", self.group_by)
        if self.session is not None and (not isinstance(self.session, str) or not self.session):
            raise ConfigError(f"session={self.session!r}: must be the name of a column, or None")
        for names, added in (((*self.by, *self.group_by), OUTCOME), (self.group_by, SUMMARY)):
            clash = sorted({n for n in names if names.count(n) > 1 or n in added})
            if clash:
                raise ConfigError(
                    f"by={self.by!r}, group_by={self.group_by!r}: {clash} would be columns twice; rename or leave out"
                )
        read = tuple(conditions(wanted, f"steps.{name}") for name, wanted in self.steps.items())
        object.__setattr__(self, "conditions", read)

    @property
    def names(self) -> tuple[str, ...]:
        """The steps' names, in order."""
        return tuple(self.steps)

    @property
    def within_us(self) -> int:
        """``within`` in microseconds."""
        return self.within // timedelta(microseconds=1)

    def kept(self) -> list[str]:
        """Returns the columns that are read after the conditions: key, session, groups."""
        return list(dict.fromkeys([*self.by, *([self.session] if self.session else []), *self.group_by]))

    def columns(self) -> list[str]:
        """Returns the input columns that are read."""
        return list(dict.fromkeys(["event_time", "event_id", *self.kept(), *columns_of(*self.conditions)]))


def check_duration(argument: str, value: object) -> None:
    """Raises ConfigError if an argument is no timedelta above zero and of at most a hundred years."""
    if not isinstance(value, timedelta) or not timedelta(0) < value <= LONGEST:
        raise ConfigError(
            f"{argument}={value!r}: must be a timedelta above zero, of at most {LONGEST.days} days, e.g. timedelta(hours=1)"
        )


def check_columns(argument: str, names: object, *, least: int = 0) -> None:
    """Raises ConfigError if an argument is no tuple of column names, or of fewer than ``least``."""
    if not isinstance(names, tuple) or not all(isinstance(n, str) and n for n in names):
        example = (names,) if isinstance(names, str) and names else ("user_id",)
        raise ConfigError(f"{argument}={names!r}: must be a tuple of column names, e.g. {example!r}")
    if len(names) < least:
        raise ConfigError(
            f"{argument}=(): name at least one column that tells users apart, e.g. ('user_id',)"
        )
