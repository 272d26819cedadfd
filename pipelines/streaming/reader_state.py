"""What a reader keeps in the runner's state between two polls."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from headrace.transforms.batches import plain

CLOCK_SKEW_US = 3_600_000_000
"""How far a broker's clock and the reader's may differ, for partitions that are read to their end."""


@dataclass
class ReaderState:
    """One reader; the text is small and grows with its partitions only."""

    position: str
    poll: int = 0
    """Number of the next poll."""
    sent_at: int = 0
    """When the last poll was sent on, µs."""
    behind: int = 0
    """Records that waited in its partitions at the last poll."""
    seeded: int | None = 0
    """Batches of the lake that were sent to the state of a new job; None: all."""
    run: str = ""
    """The run, from start to drain, that what follows is about."""
    rows: int = 0
    """Records read in it."""
    ended: bool = False
    """True once its last poll is sent: nothing more is read in it."""
    ingest: dict[str, int] = field(default_factory=dict)
    """Latest ingest time read, µs, by origin."""
    ingest_position: int | None = None
    clock: str = ""
    """The event clock, as it encodes itself."""

    def enter(self, run: str) -> None:
        """Begins a run, if it has not begun: what ended the one before no longer counts."""
        if run != self.run:
            self.run, self.rows, self.ended, self.sent_at = run, 0, False, 0

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> "ReaderState":
        return cls(**json.loads(encoded))

    def observe_ingest(self, batch: pa.RecordBatch, behind: Mapping[str, int], now_us: int) -> None:
        """Moves the ingest position: the time up to which the slowest partition has been read. Never back.

        Args:
            batch: raw records of one poll.
            behind: records waiting, by origin, of all that the reader owns; others are forgotten. Empty: not known.
        """
        if batch.num_rows:
            table = pa.table([plain(batch.column("origin")), batch.column("ingest_time")], names=["o", "t"])
            latest = table.group_by("o").aggregate([("t", "max")])
            for origin, time in zip(
                latest["o"].to_pylist(), pc.cast(latest["t_max"], pa.int64()).to_pylist(), strict=True
            ):
                if time is not None:
                    self.ingest[origin] = max(time, self.ingest.get(origin, time))
        if not behind:
            return  # The source could not say: an outage must not look like a partition that is read to its end.
        known = []
        for origin, waiting in behind.items():
            if not waiting:
                known.append(now_us - CLOCK_SKEW_US)
            elif origin in self.ingest:
                known.append(self.ingest[origin])
            else:
                break  # A partition with records of unknown age holds everything.
        else:
            lowest = min(known)
            self.ingest_position = (
                lowest if self.ingest_position is None else max(lowest, self.ingest_position)
            )
        self.ingest = {origin: time for origin, time in self.ingest.items() if origin in behind}
