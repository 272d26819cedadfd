"""What a session is: plain data, without Arrow or Beam."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from headrace.schemas.errors import ConfigError
from headrace.transforms.conditions import Conditions, columns_of, conditions

LONGEST_GAP = timedelta(days=3650)

PAGES, MARKS = "pages", "marks"
"""Columns that only a partial has."""

RESULTS = (
    "session_start",
    "session_end",
    "duration_seconds",
    "events",
    "page_views",
    "unique_pages",
    "entry_page",
    "exit_page",
    "purchases",
    "revenue",
    "currency",
    "revenues",
    "bounce",
    "device_type",
    "country",
    "channel",
    "is_bot",
)
"""Columns of a session, after its key; :func:`headrace.transforms.session_partials.finish` says what they hold."""

READ = (
    "event_time",
    "event_id",
    "event_type",
    "page_url",
    "referrer",
    "device_type",
    "country",
    "is_bot",
    "revenue",
    "currency",
)
"""Columns of events that sessions are made from, apart from the key's and the conditions'."""


@dataclass(frozen=True)
class Sessions:
    """Which events are one session.

    Args:
        gap: how far apart two consecutive events of one session may be at most; a longer pause ends the session.
        by: key columns, whose values name the visitor; null is a value of its own, but a row in which all are null has no session.
        where: which events count, as a mapping (``{"is_bot": [False, None]}``) or as what
            :func:`headrace.transforms.conditions.conditions` makes of it; empty: all.

    Raises:
        ConfigError: a gap that is not above zero or longer than ten years; no key column, or one of the name of a session's column;
            conditions as described in :func:`headrace.transforms.conditions.conditions`.
    """

    gap: timedelta = timedelta(minutes=30)
    by: tuple[str, ...] = ("user_id",)
    where: Conditions = ()

    def __post_init__(self) -> None:
        if not isinstance(self.gap, timedelta) or not timedelta(0) < self.gap <= LONGEST_GAP:
            raise ConfigError(
                f"gap={self.gap!r}: must be a timedelta above zero and of at most {LONGEST_GAP.days} days, "
                "e.g. timedelta(minutes=30)"
            )
        if not isinstance(self.by, tuple) or not all(isinstance(name, str) for name in self.by):
            raise ConfigError(f"by={self.by!r}: must be a tuple of column names, e.g. ('user_id',)")
        if not self.by:
            raise ConfigError("by=(): name the columns that tell visitors apart, e.g. ('user_id',)")
        names = [*RESULTS, PAGES, MARKS, *self.by]
        twice = sorted({n for n in self.by if names.count(n) > 1})
        if twice:
            raise ConfigError(
                f"by={self.by!r}: {twice} would be columns of a session twice; rename or leave out"
            )
        object.__setattr__(self, "where", _checked(self.where))

    @property
    def gap_us(self) -> int:
        """The gap in microseconds."""
        return self.gap // timedelta(microseconds=1)

    def columns(self) -> list[str]:
        """Returns the input columns that are read."""
        return list(dict.fromkeys([*READ, *self.by, *columns_of(self.where)]))


def _checked(where: object) -> Conditions:
    """Reads conditions anew, so that both forms are checked alike."""
    if isinstance(where, tuple):
        pairs = all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in where)
        where = dict(where) if pairs and len(dict(where)) == len(where) else where
    if not isinstance(where, Mapping):
        raise ConfigError(
            f"where={where!r}: write columns and their values, each column once, e.g. {{'is_bot': [False, None]}}"
        )
    return conditions(where, "where")
