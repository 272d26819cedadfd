"""What a process remembers of the state of its shards between two bundles, valid only under the version that the state names."""

import threading
from typing import Generic, TypeVar

Index = TypeVar("Index")


class IndexCache(Generic[Index]):
    """Indexes by (step, shard), each under the version of the state that it was built from.

    A runner rolls state back and moves shards between processes without telling, so an index may be used only if its version
    equals the one in the state, and must be *taken* before it is changed: while it is out, nobody else can have it, and if the
    bundle fails it is lost rather than wrong. Every change of the state needs a new random version.

    For any number of threads. An index that has not been used while others were put back ``stale_after`` times is dropped: its
    shard has moved to another process, and if it comes back, its index is built again. Indexes in use are never dropped, as
    building them for each batch would stop the job; so memory is that of the shards that this process works on.
    """

    def __init__(self, stale_after: int = 20_000) -> None:
        self._stale_after = stale_after
        self._lock = threading.Lock()
        self._uses = 0
        self._held: dict[tuple[str, int], tuple[bytes, Index, int]] = {}
        """Version, index, number of the use; the least recently used first."""

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: tuple[str, int], version: bytes) -> Index | None:
        """Takes the index out; None if there is none of this version."""
        with self._lock:
            held = self._held.pop(key, None)
        return held[1] if held is not None and held[0] == version else None

    def put(self, key: tuple[str, int], version: bytes, index: Index) -> None:
        """Puts an index (back) that matches the state of this version."""
        with self._lock:
            self._uses += 1
            self._held.pop(key, None)
            self._held[key] = (version, index, self._uses)
            while True:
                oldest = next(iter(self._held))
                if self._uses - self._held[oldest][2] < self._stale_after:
                    return
                del self._held[oldest]
