"""Upkeep of a stream's tables while it runs: small files into large ones, and files that nothing needs away."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.connectors.commit_stream import LATE, METRICS
from headrace.connectors.compact_lake import Compacted, compact_lake, remove_orphans, remove_replaced
from headrace.connectors.stream_entries import TABLES
from headrace.connectors.stream_ledger import TABLE
from headrace.schemas.errors import HeadraceError

CLEAN_SECONDS = 3600.0
"""How often files are looked for that can be deleted; what is deleted is a day old at least."""

_log = logging.getLogger(__name__)


def tables_of(out: Path) -> list[str]:
    """Returns the names of the tables that an output has."""
    names = [*TABLES, TABLE]
    for folder in (METRICS, LATE):
        if (out / folder).is_dir():
            names += sorted(f"{folder}/{path.name}" for path in (out / folder).iterdir())
    return [name for name in names if DeltaTable.is_deltatable(str(out / name))]


class Upkeep:
    """A thread that keeps the tables small in files for as long as its ``with`` block runs.

    An append costs 5 to 6 ms more for each thousand files of the table. It never stops the stream: what goes wrong is logged
    and tried again the next time. Rows, marks and totals are unchanged, and commits go on meanwhile.

    Args:
        out: the output.
        every_seconds: how often; 0: never.
        clean_seconds: how often replaced and orphaned files are deleted.
        clock: seconds.
    """

    def __init__(
        self,
        out: Path,
        every_seconds: float,
        *,
        clean_seconds: float = CLEAN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._every = every_seconds
        self._clean = clean_seconds
        self._clock = clock
        self._cleaned_at = clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Upkeep":
        if self._every:
            self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        """Waits for the table that is being compacted."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> dict[str, Compacted]:
        """Does what is due for every table; returns what was compacted."""
        now = self._clock()
        cleans = now - self._cleaned_at >= self._clean
        if cleans:
            self._cleaned_at = now
        done = {}
        for name in tables_of(self._out):
            if self._over.is_set():
                break
            try:
                compacted = compact_lake(self._out, name)
                if compacted.removed:
                    done[name] = compacted
                    _log.info("table %s: %d small files became %d", name, compacted.removed, compacted.added)
                if cleans:
                    self._delete(name)
            except (DeltaError, HeadraceError, OSError) as error:
                _log.warning("upkeep of table %s: %s; it is tried again", name, error)
            except Exception:  # noqa: BLE001 - the stream goes on with more files, whatever is wrong with the upkeep
                _log.exception("upkeep of table %s; it is tried again", name)
        return done

    def _delete(self, name: str) -> None:
        replaced = remove_replaced(self._out, name)
        orphans = remove_orphans(self._out, name)
        if replaced or orphans:
            _log.info("table %s: %d replaced files and %d orphans deleted", name, replaced, len(orphans))

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self.look()
