"""Columnar PTransforms for event data.

Stages return ``.accepted`` and ``.rejected``; FromDicts, FromRows, ToDicts and ToRows convert at the edges. What a window
counts is said with the measures of :mod:`headrace.transforms.window_definitions`. What is per user or session (Sessionize, Funnel,
Attribute, Cohorts, ProfileUsers) brings the rows of a user together.
"""

from headrace.transforms.aggregate_windows import AggregateWindows
from headrace.transforms.assign_position_ids import AssignPositionIds
from headrace.transforms.attribute import Attribute
from headrace.transforms.cohorts import Cohorts
from headrace.transforms.decode import Decode
from headrace.transforms.deduplicate import Deduplicate
from headrace.transforms.enrich import Enrich
from headrace.transforms.enrich_country import EnrichCountry
from headrace.transforms.filter_events import FilterEvents
from headrace.transforms.from_dicts import FromDicts
from headrace.transforms.from_rows import FromRows
from headrace.transforms.funnel import Funnel
from headrace.transforms.keys import Key
from headrace.transforms.mask_pii import MaskPii
from headrace.transforms.profile_users import ProfileUsers
from headrace.transforms.reject_stale import RejectStale
from headrace.transforms.sessionize import Sessionize
from headrace.transforms.to_dicts import ToDicts
from headrace.transforms.to_rows import ToRows
from headrace.transforms.validate import Validate

__all__ = [
    "AggregateWindows",
    "AssignPositionIds",
    "Attribute",
    "Cohorts",
    "Decode",
    "Deduplicate",
    "Enrich",
    "EnrichCountry",
    "FilterEvents",
    "FromDicts",
    "FromRows",
    "Funnel",
    "Key",
    "MaskPii",
    "ProfileUsers",
    "RejectStale",
    "Sessionize",
    "ToDicts",
    "ToRows",
    "Validate",
]
