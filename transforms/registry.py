"""Every transform by its name in a configuration; nothing registers itself."""

import apache_beam as beam

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
from headrace.transforms.mask_pii import MaskPii
from headrace.transforms.profile_users import ProfileUsers
from headrace.transforms.reject_stale import RejectStale
from headrace.transforms.sessionize import Sessionize
from headrace.transforms.to_dicts import ToDicts
from headrace.transforms.to_rows import ToRows
from headrace.transforms.validate import Validate

TRANSFORMS: dict[str, type[beam.PTransform]] = {
    "from_dicts": FromDicts,
    "from_rows": FromRows,
    "decode": Decode,
    "validate": Validate,
    "reject_stale": RejectStale,
    "assign_position_ids": AssignPositionIds,
    "enrich_country": EnrichCountry,
    "mask_pii": MaskPii,
    "deduplicate": Deduplicate,
    "enrich": Enrich,
    "filter_events": FilterEvents,
    "aggregate_windows": AggregateWindows,
    "sessionize": Sessionize,
    "funnel": Funnel,
    "attribute": Attribute,
    "cohorts": Cohorts,
    "profile_users": ProfileUsers,
    "to_dicts": ToDicts,
    "to_rows": ToRows,
}
"""In the order in which a pipeline applies them."""
