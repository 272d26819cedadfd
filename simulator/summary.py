"""What a simulation produced, to be held against what a pipeline found."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headrace.simulator.faults import CLASSES


@dataclass
class SimulationSummary:
    """Exact counts of the lines written so far; complete once the simulation has been read to its end.

    ``classes`` has one entry for each line: the verdict that a pipeline must reach if it decides in the order decode, validate,
    stale and future, dedupe, with ``now`` as the reference time. ``event_types`` and ``revenue`` are of accepted lines only.
    """

    seed: int
    start: datetime
    """Earliest possible time of an event that is neither stale nor future."""
    now: datetime
    """End of the simulated time in whole seconds: the reference time (``--now``) for which ``classes`` holds."""
    events: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """Injected faults by kind; lines with PII, unknown fields or repeats are accepted none the less."""
    families: Counter[str] = field(default_factory=Counter)
    """Lines by the family that they are of, or were before they were broken; ``none`` for those of no family."""
    event_types: Counter[str] = field(default_factory=Counter)
    revenue_cents: Counter[str] = field(default_factory=Counter)
    """By currency: purchases less refunds."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the truth as JSON values: every class is named, the rest is sorted; ``revenue`` as decimal text."""
        return {
            "seed": self.seed,
            "events": self.events,
            "start": _iso(self.start),
            "now": _iso(self.now),
            "classes": {name: self.classes[name] for name in CLASSES},
            "faults": dict(sorted(self.faults.items())),
            "families": dict(sorted(self.families.items())),
            "event_types": dict(sorted(self.event_types.items())),
            "revenue": {
                currency: f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"
                for currency, cents in sorted(self.revenue_cents.items())
            },
        }

    def to_json(self) -> str:
        """Returns :meth:`to_dict` as indented JSON text; equal seeds give equal bytes."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def __str__(self) -> str:
        truth = self.to_dict()
        lines = [f"{self.events:,} events from {truth['start']}; reference time: --now {truth['now']}"]
        for title in ("classes", "faults", "families"):
            parts = ", ".join(f"{name} {count:,}" for name, count in truth[title].items() if count)
            lines.append(f"  {title}: {parts or 'none'}")
        return "\n".join(lines)


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
