"""Columnar PTransforms for event data.

Stages return ``.accepted`` and ``.rejected``; FromDicts, FromRows, ToDicts and ToRows convert at the edges. What a window
counts is said with ``Count``, ``Distinct`` and ``Sum`` from :mod:`headrace.transforms.window_definitions`.
"""

from headrace.transforms.aggregate_windows import AggregateWindows
from headrace.transforms.assign_position_ids import AssignPositionIds
from headrace.transforms.decode import Decode
from headrace.transforms.deduplicate import Deduplicate
from headrace.transforms.enrich import Enrich
from headrace.transforms.enrich_country import EnrichCountry
from headrace.transforms.filter_events import FilterEvents
from headrace.transforms.from_dicts import FromDicts
from headrace.transforms.from_rows import FromRows
from headrace.transforms.keys import Key
from headrace.transforms.mask_pii import MaskPii
from headrace.transforms.reject_stale import RejectStale
from headrace.transforms.to_dicts import ToDicts
from headrace.transforms.to_rows import ToRows
from headrace.transforms.validate import Validate

__all__ = [
    "AggregateWindows",
    "AssignPositionIds",
    "Decode",
    "Deduplicate",
    "Enrich",
    "EnrichCountry",
    "FilterEvents",
    "FromDicts",
    "FromRows",
    "Key",
    "MaskPii",
    "RejectStale",
    "ToDicts",
    "ToRows",
    "Validate",
]
