"""What comparing two tables found."""

from dataclasses import asdict, dataclass, field
from typing import Any

Example = dict[str, Any]
Row = dict[str, str | None]


@dataclass(frozen=True)
class ColumnDifference:
    """What differs in one column between rows of equal key."""

    cells: int
    """Cells that differ."""
    within_tolerance: int
    """Cells that are not equal, but near enough."""
    largest_absolute: float | None
    """Of the numbers that differ; of times, in seconds. None: there is none that can be said."""
    largest_relative: float | None
    """Of the numbers that differ, by the larger of both."""
    examples: list[Example]
    """``key``, ``a`` and ``b``, as text."""


@dataclass(frozen=True)
class TableComparison:
    """What two tables have in common and what not."""

    name: str
    key: list[str]
    """Empty: whole rows are compared."""
    rows_a: int
    rows_b: int
    rows_compared: int
    """Pairs of rows of equal key; without key, of equal rows."""
    rows_differing: int
    """Of these, pairs with a cell that differs."""
    only_in_a: int
    only_in_b: int
    repeated_keys_a: int
    repeated_keys_b: int
    """Keys that stand in more than one row; the rows of such a key are compared as a multiset."""
    columns: dict[str, ColumnDifference]
    """Of columns with a cell that is not equal."""
    columns_only_in_a: list[str]
    columns_only_in_b: list[str]
    other_types: dict[str, tuple[str, str]]
    """Columns that hold different things, so that their values can't be compared, with DuckDB's names of their types."""
    ignored: list[str]
    examples_only_in_a: list[Row] = field(default_factory=list)
    examples_only_in_b: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (
            self.rows_differing
            or self.only_in_a
            or self.only_in_b
            or self.columns_only_in_a
            or self.columns_only_in_b
            or self.other_types
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {"equal": self.equal, **asdict(self)}
