"""Upkeep of a stream's tables while it runs: small files into large ones, and files that nothing needs away.

    python -m headrace.pipelines.streaming.upkeep OUT SECONDS

is the process that does it beside a stream, until its standard input is closed. It writes its log to standard output, a line of
JSON for each: ``{"level": 20, "message": "…"}``.
"""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.connectors.commit_stream import LATE, METRICS
from headrace.connectors.compact_lake import Compacted, compact_lake, remove_orphans, remove_replaced
from headrace.connectors.stream_entries import TABLES
from headrace.connectors.stream_ledger import TABLE
from headrace.schemas.errors import HeadraceError

CLEAN_SECONDS = 3600.0
"""How often files are looked for that can be deleted; what is deleted is a day old at least."""
TARGET_BYTES = 32 << 20
"""Size of the files that a running stream makes. A file of that size is not rewritten again, so that a row is rewritten about once;
``headrace lake compact`` makes larger ones."""
NICENESS = 15
"""The stream goes first wherever cores are short."""

_log = logging.getLogger(__name__)


def tables_of(out: Path) -> list[str]:
    """Returns the names of the tables that an output has."""
    names = [*TABLES, TABLE]
    for folder in (METRICS, LATE):
        if (out / folder).is_dir():
            names += sorted(f"{folder}/{path.name}" for path in (out / folder).iterdir())
    return [name for name in names if DeltaTable.is_deltatable(str(out / name))]


class Upkeep:
    """Keeps the tables small in files. Rows, marks and totals are unchanged, and commits go on meanwhile.

    An append costs 5 to 6 ms more for each thousand files of the table. It never stops the stream: what goes wrong is logged
    and tried again the next time.

    Args:
        out: the output.
        clean_seconds: how often replaced and orphaned files are deleted.
        clock: seconds.
    """

    def __init__(
        self,
        out: Path,
        *,
        clean_seconds: float = CLEAN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._clean = clean_seconds
        self._clock = clock
        self._cleaned_at = clock()

    def look(self, over: Callable[[], bool] = lambda: False) -> dict[str, Compacted]:
        """Does what is due for every table; returns what was compacted.

        Args:
            over: no further table is begun once it is true.
        """
        now = self._clock()
        cleans = now - self._cleaned_at >= self._clean
        if cleans:
            self._cleaned_at = now
        done = {}
        for name in tables_of(self._out):
            if over():
                break
            try:
                compacted = compact_lake(self._out, name, target_bytes=TARGET_BYTES)
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


class UpkeepProcess:
    """A process of low priority that does the upkeep for as long as the ``with`` block runs; one that dies is started again.

    Args:
        out: the output.
        every_seconds: how often; 0: never.
    """

    def __init__(self, out: Path, every_seconds: float) -> None:
        self._out = out
        self._every = every_seconds
        self._over = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "UpkeepProcess":
        if self._every:
            self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Waits for the table that is being compacted."""
        self._over.set()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Passes the process's log on."""
        while not self._over.is_set():
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._out), str(self._every)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # A Ctrl-C is for the launcher, which ends it.
            )
            assert self._process.stdin is not None and self._process.stdout is not None
            if self._over.is_set():
                self._process.stdin.close()
            for line in self._process.stdout:
                told = json.loads(line)
                _log.log(told["level"], "%s", told["message"])
            code = self._process.wait()
            if not self._over.wait(self._every if code else 0.0):
                _log.warning("the upkeep of the tables ended with code %d; it is started again", code)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelno, "message": super().format(record)})


def main(out: str, every_seconds: float) -> None:
    """Looks again and again until standard input is closed."""
    os.nice(NICENESS)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    keeper = Upkeep(Path(out))
    while not _closed(every_seconds):
        keeper.look(lambda: _closed(0))


def _closed(seconds: float) -> bool:
    """Waits for the end of standard input, so long at most."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
