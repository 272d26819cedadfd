"""What a pipeline does to events: its kernels, in order, built from one configuration."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa

from headrace.schemas.columns import ENRICHED_SCHEMA, JSON_COLUMNS
from headrace.schemas.registry import Registry
from headrace.transforms.assign_position_ids import AssignPositionIds
from headrace.transforms.base import Kernel, StageTransform
from headrace.transforms.decode import Decode
from headrace.transforms.enrich import Enrich
from headrace.transforms.enrich_country import EnrichCountry
from headrace.transforms.filter_events import FilterEvents
from headrace.transforms.keys import Key
from headrace.transforms.mask_pii import MaskPii
from headrace.transforms.profiles import ProfileTable
from headrace.transforms.ready_windows import METRICS
from headrace.transforms.reject_stale import RejectStale
from headrace.transforms.validate import Validate
from headrace.transforms.window_definitions import Windows

MASKED_STAGES = ("dedupe", "rules", "filter", "windows")
"""Stages after masking: their rejected rows keep their (masked) columns."""


@dataclass(frozen=True)
class Definition:
    """The stages of a pipeline. Picklable; the same on every runner, in batch and in a backfill."""

    key: Key
    schema: str | None = None
    max_age: timedelta = timedelta(hours=24)
    max_ahead: timedelta = timedelta(minutes=5)
    country_database: str | None = None
    profiles: ProfileTable | None = None
    rules: dict[str, str] = field(default_factory=dict)
    filter: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Windows] = field(default_factory=lambda: dict(METRICS))
    registry: Registry = field(default_factory=Registry.default)

    def before_dedupe(self, format_: str, *, stream: bool = False) -> list[Kernel]:
        """Returns the kernels from raw records to masked events, for inputs of this format; each is set up.

        Args:
            stream: the origin is a stream in which a position is for ever: events without an id get one by position.
        """
        weblog = format_ == "weblog"
        stages: list[StageTransform] = [
            Decode(
                None if weblog else self.schema,
                format="weblog" if weblog else "json",
                key=self.key,
                registry=self.registry,
            ),
            Validate(key=self.key, registry=self.registry),
            RejectStale(self.max_age, self.max_ahead, key=self.key),
            *([AssignPositionIds()] if stream else []),
            EnrichCountry(self.country_database),
            MaskPii(self.key, sensitive=dict.fromkeys(JSON_COLUMNS, "json") | self.registry.sensitive()),
        ]
        return _set_up(stage.kernel() for stage in stages)

    def after_dedupe(self) -> list[Kernel]:
        """Returns the kernels from unique masked events to the lake's rows; each is set up."""
        stages = [Enrich(country=False, profiles=self.profiles), *self.filters()]
        return _set_up(stage.kernel() for stage in stages)

    def filters(self) -> list[FilterEvents]:
        """Returns the stages that hold events against rules over the lake's columns.

        Raises:
            ConfigError: a rule that can't be compiled.
        """
        stages = (("rules", self.rules), ("filter", self.filter))
        return [FilterEvents(r, stage=name, schema=self.lake_schema()) for name, r in stages if r]

    def shared_panes(self) -> dict[str, list[str]]:
        """Returns the window tables that are made of the same panes, by the first of their names."""
        found: dict[str, list[str]] = {}
        for name, windows in self.metrics.items():
            first = next((n for n in found if self.metrics[n].panes == windows.panes), name)
            found.setdefault(first, []).append(name)
        return found

    def lake_schema(self) -> pa.Schema:
        """Returns the lake's columns: ``ENRICHED_SCHEMA`` and the profile columns."""
        fields = list(ENRICHED_SCHEMA)
        if self.profiles is not None:
            fields += list(self.profiles.schema)
        return pa.schema(fields)


def _set_up(kernels: Iterable[Kernel]) -> list[Kernel]:
    ready = list(kernels)
    for kernel in ready:
        kernel.setup()
    return ready
