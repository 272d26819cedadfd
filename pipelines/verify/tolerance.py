"""How far two numbers may be apart and still count as equal."""

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Self

from headrace.pipelines.verify.column_types import Common
from headrace.schemas.errors import ConfigError

_ROUNDING = "4.5e-16"
"""Relative: what the rounding of two binary fractions adds to their distance does not count."""


@dataclass(frozen=True)
class Tolerance:
    """An absolute bound, or a relative one by the larger of both numbers."""

    bound: Decimal
    """0.01 for ``0.01`` and for ``1%``."""
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``0.01`` (absolute) or ``1%`` (relative).

        Raises:
            ConfigError: it is no number, or negative.
        """
        relative = text.endswith("%")
        try:
            bound = Decimal(text.removesuffix("%").strip())
        except InvalidOperation:
            bound = Decimal(-1)
        if not bound.is_finite() or bound < 0:
            raise ConfigError(
                f"tolerance {text!r} is no number from 0 up; give 0.01 for an absolute one, 1% for a relative one"
            )
        return cls(bound / 100 if relative else bound, relative)

    def sql(self, a: str, b: str, common: Common) -> str:
        """Returns SQL that is true if two cells are near enough, and never null."""
        if self.relative or common.family == "real":
            x, y = f"CAST({a} AS DOUBLE)", f"CAST({b} AS DOUBLE)"
            largest = f"greatest(abs({x}), abs({y}))"
            bound = f"{float(self.bound)!r}::DOUBLE" + (f" * {largest}" if self.relative else "")
            near = f"abs({x} - {y}) <= {bound} + {_ROUNDING} * {largest}"
            return f"coalesce(isfinite({x}) AND isfinite({y}) AND {near}, false)"
        exact = self.bound.quantize(Decimal(1).scaleb(-common.scale), ROUND_FLOOR)
        wide = f"DECIMAL(38,{common.scale})" if common.scale else "HUGEINT"
        return f"coalesce(TRY(abs(CAST({a} AS {wide}) - CAST({b} AS {wide})) <= CAST('{exact:f}' AS {wide})), false)"
