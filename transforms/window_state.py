"""What a shard of window tables remembers, and how it stands in a state cell and in slots.

The cell has a version, when things last happened, the open panes, the windows that are not final, the sizes of the slots, and the
stream's clock. A slot has appended pieces: each a list of partials of some tables, as Arrow IPC streams.
"""

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.schemas.errors import ConfigError
from headrace.transforms.stream_clock import END, StreamClock

SLOTS = 32
NEVER = -(1 << 63)

MOST_TABLES = 500
KEYS = 1000
"""A *key* is the start of a window or pane, µs, plus the number of its table: windows begin at whole milliseconds. The last rows
published of a window have the key of the window plus ``MOST_TABLES``."""
WINDOWS = np.dtype([("key", "<i8"), ("index", "<i4"), ("changed", "?"), ("passed", "?")])
"""A window that has rows and is not final: next pane index, changed since it last fired, its end passed by the watermark."""
SIZES = np.dtype([("pieces", "<u4"), ("added", "<u8"), ("base", "<u8")])
"""A slot: pieces and bytes appended since it was rewritten, and bytes of the last rewriting."""
_HEAD = struct.Struct("<16s8sqqqqII")

I64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]


@dataclass
class WindowState:
    """The cell, decoded, and the partials of some slots."""

    clock: StreamClock
    version: bytes = b""
    horizon: int = NEVER
    """The highest watermark minus the allowed lateness: windows that end here or before are final."""
    now: int = NEVER
    """The readers' clock."""
    early_at: int = NEVER
    late_at: int = NEVER
    """When early and late firings last happened."""
    panes: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    """Keys, sorted, of the panes that have rows and are in a window that is not final."""
    windows: Records = field(default_factory=lambda: np.empty(0, WINDOWS))
    sizes: Records = field(default_factory=lambda: np.zeros(SLOTS, SIZES))
    slots: dict[int, dict[int, list[pa.RecordBatch]]] = field(default_factory=dict)
    """Partials by key of the slots that are in memory, the one used last at the end."""
    due: int = END
    """The watermark at which a window fires next."""
    early_waits: bool = False
    late_waits: bool = False
    """True if a window that the watermark has not passed, or has passed, changed since it last fired."""
    tail: bytes = b""
    """``panes``, ``windows`` and ``sizes`` encoded; empty after a change."""

    def encode(self, definition: bytes) -> bytes:
        """Returns the cell.

        Args:
            definition: 8 bytes that tell whose state it is.
        """
        if not self.tail:
            self.tail = self.panes.tobytes() + self.windows.tobytes() + self.sizes.tobytes()
        head = _HEAD.pack(
            self.version,
            definition,
            self.horizon,
            self.now,
            self.early_at,
            self.late_at,
            len(self.panes),
            len(self.windows),
        )
        return head + self.tail + self.clock.encode()

    @classmethod
    def decode(cls, cell: bytes, definition: bytes, readers: int, shards: int) -> "WindowState":
        """Reads what ``encode`` gave, without the slots.

        Raises:
            ConfigError: it is the state of another definition.
        """
        version, found, horizon, now, early_at, late_at, panes, windows = _HEAD.unpack_from(cell)
        if found != definition:
            raise ConfigError(
                "the saved state is of other window tables; go on with the definition that wrote it, or rebuild the state"
            )
        ends = np.cumsum([_HEAD.size, panes * 8, windows * WINDOWS.itemsize, SLOTS * SIZES.itemsize]).tolist()
        return cls(
            StreamClock.decode(cell[ends[3] :], readers, shards),
            version,
            horizon,
            now,
            early_at,
            late_at,
            panes=np.frombuffer(cell, np.int64, panes, ends[0]).copy(),
            windows=np.frombuffer(cell, WINDOWS, windows, ends[1]).copy(),
            sizes=np.frombuffer(cell, SIZES, SLOTS, ends[2]).copy(),
            tail=cell[ends[0] : ends[3]],
        )


def tables_of(keys: I64) -> I64:
    """Returns the numbers of the tables."""
    return keys % KEYS % MOST_TABLES


def starts_in(keys: I64) -> I64:
    """Returns the starts, µs."""
    return keys - keys % KEYS


def version_of(cell: bytes) -> bytes:
    """Returns the version of an encoded state."""
    return cell[:16]
