"""Ids by position for events of a stream that carry none."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from headrace.transforms.base import Outcome, StageTransform
from headrace.transforms.batches import column, mask_of, plain, replace
from headrace.transforms.identity import position_ids
from headrace.transforms.rejects import no_rejects


class AssignPositionIdsKernel:
    """The kernel of :class:`AssignPositionIds`."""

    name = "identity"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def setup(self) -> None:
        """Nothing to build."""

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        positions = column(batch, "origin_position")
        generated = mask_of(pc.and_(column(batch, "id_generated"), positions.is_valid()))
        if not generated.any():
            return Outcome(batch, no_rejects())
        chosen = pa.array(generated)
        made = position_ids(column(batch, "origin").filter(chosen), positions.filter(chosen))
        ids = pc.replace_with_mask(plain(column(batch, "event_id")), chosen, made)
        return Outcome(replace(batch, {"event_id": ids}), no_rejects())


class AssignPositionIds(StageTransform):
    """Gives events whose id was generated the id of their position in a stream: UUIDv8 of (origin, origin_position).

    For sources in which a position is for ever (topic, partition and offset): equal records at two offsets are two events, and a
    record that is delivered twice is one, whatever its content. Apply it between Decode and Deduplicate. Where the position is
    null the id stays the one of the content. All other columns, rows and their order are unchanged. Nothing is rejected.
    Stateless; bounded or unbounded; any windowing; a replay gives the same ids.

    Input: batches with ``event_id``, ``id_generated``, ``origin``, ``origin_position``.
    Output: the same schema.
    """

    def kernel(self) -> AssignPositionIdsKernel:
        return AssignPositionIdsKernel()
