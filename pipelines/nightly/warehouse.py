"""The warehouse's folder: what holds for all of its dates, and what each date's run left."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any
from zoneinfo import ZoneInfo

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.output_lock import FILE as LOCK_FILE
from headrace.connectors.output_lock import OutputLock
from headrace.connectors.write_lake import WrittenFile
from headrace.pipelines.nightly.local_days import find_zone
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.schemas.errors import ConfigError

FILE = "warehouse.json"
RUNS = "_runs"
WORK = "_work"
FORMAT = 1
DEFAULTS: dict[str, str | int] = {"timezone": "UTC", "gap_seconds": 1800, "shards": 16}
"""Of a new warehouse, where the configuration says null."""


@dataclass
class DayManifest:
    """What a run of one date read and wrote."""

    date: str
    """ISO 8601."""
    fingerprint: str
    """32 hex characters of all that decides which rows come out."""
    lake_version: int
    """Of the lake's table, as it was read."""
    inputs: str
    """Digest of the lake's files that may hold events of the date, or of the gap before."""
    files: dict[str, list[WrittenFile]]
    """By table."""
    events: int
    """The lake's events of the date; of them ``without_user`` have no user_id."""
    without_user: int
    first_seen: str = ""
    """Digest of the users first seen on the date; empty if there are none."""
    state: str = "written"
    """written: checked, and being committed; done: all tables have the rows."""
    rerun_because: list[str] = field(default_factory=list)
    """Why another date's run made this one's rows old; empty if none did."""
    headrace: str = ""
    format: int = FORMAT

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table."""
        return {name: sum(file.rows for file in files) for name, files in self.files.items()}


class Warehouse:
    """A warehouse that no other run writes to meanwhile; use it in a ``with`` block.

    Attributes:
        zone: whose calendar dates are meant.
        gap: longest pause within a session.
        shards: over how many parts users are spread.
    """

    def __init__(self, root: Path, settings: dict[str, Any], lock: OutputLock | None) -> None:
        self.root = root
        self.zone: ZoneInfo = find_zone(settings["timezone"])
        self.gap = timedelta(seconds=settings["gap_seconds"])
        self.shards: int = settings["shards"]
        self._lock = lock

    def path(self, table: str) -> Path:
        return self.root / table

    def work(self, day: date) -> Path:
        """Where a date's run keeps what is not committed yet."""
        return self.root / WORK / day.isoformat()

    def manifest(self, day: date) -> DayManifest | None:
        """Returns what a date's last run left; None if there was none.

        Raises:
            ConfigError: it is damaged, or of a newer headrace.
        """
        path = self._manifest_path(day)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_bytes())
            if found["format"] != FORMAT:
                raise ConfigError(
                    f"{path} has format {found['format']!r}, this headrace knows {FORMAT}; use headrace {found.get('headrace')}"
                )
            found["files"] = {n: [WrittenFile(**f) for f in each] for n, each in found["files"].items()}
            return DayManifest(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}); delete it and run its date again") from error

    def manifests(self) -> Iterator[tuple[date, DayManifest]]:
        """Yields all dates that were run, ascending."""
        for path in sorted((self.root / RUNS).glob("????-??-??.json")):
            day = date.fromisoformat(path.stem)
            manifest = self.manifest(day)
            if manifest is not None:
                yield day, manifest

    def save(self, manifest: DayManifest) -> None:
        """Writes a date's manifest, whole or not at all.

        Raises:
            OutputError: the disk refused.
        """
        manifest.headrace = version("headrace")
        text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
        replace_file(self._manifest_path(date.fromisoformat(manifest.date)), text.encode() + b"\n")

    def _manifest_path(self, day: date) -> Path:
        return self.root / RUNS / f"{day.isoformat()}.json"

    def __enter__(self) -> "Warehouse":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()


def open_warehouse(config: NightlyConfig, lake_id: str, *, lock: bool = True) -> Warehouse:
    """Opens the warehouse of ``config.output``, or makes a new one; what holds for all of its dates is saved at the first call.

    Args:
        lake_id: the id of the lake's table.
        lock: false to read only; then a warehouse that does not exist is not made.

    Raises:
        ConfigError: the folder is no warehouse, or one of another lake, zone, gap or number of shards; it is in use by another run.
    """
    root = Path(config.output).absolute()
    path = root / FILE
    if not path.exists():
        _require_new(root)
    elif not root.is_dir():
        raise ConfigError(f"output {root} is no folder; name another --output")
    held = None
    if lock:
        root.mkdir(exist_ok=True)
        held = OutputLock(root)
    try:
        given = {name: getattr(config, name) for name in DEFAULTS}
        if path.exists():
            saved = _load(path)
            _require_same(root, saved, {**given, "lake_id": lake_id})
        else:
            chosen = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
            saved = {"format": FORMAT, "headrace": version("headrace"), **chosen, "lake_id": lake_id}
            if lock:
                replace_file(path, json.dumps(saved, indent=1).encode() + b"\n")
        return Warehouse(root, saved, held)
    except BaseException:
        if held is not None:
            held.release()
        raise


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        missing = [n for n in (*DEFAULTS, "lake_id", "format") if n not in found]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} can't be read ({error}); restore it from a backup") from error
    if missing or found["format"] != FORMAT:
        raise ConfigError(
            f"{path} is not of this headrace (format {found.get('format')!r}, without {missing}); use headrace "
            f"{found.get('headrace')}"
        )
    return found


def _require_same(root: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is None or value == saved[name]:
            continue
        if name == "lake_id":
            raise ConfigError(
                f"output {root} was made from another lake (table {saved[name]}, this one is {value}), whose versions say nothing "
                "about this one's late data; name that lake, or another --output"
            )
        option = "--" + name.replace("_", "-")
        raise ConfigError(
            f"output {root} has {name} {saved[name]}, this run says {value}, so dates could not be compared; leave {option} out, "
            "or name another --output"
        )


def _require_new(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output {root} is a file; name a folder")
    if not root.parent.is_dir():
        raise ConfigError(
            f"output {root}: folder {root.parent} does not exist; create it, or name another --output"
        )
    if root.exists():
        foreign = sorted(n for n in os.listdir(root) if n != LOCK_FILE and not n.startswith(f".{FILE}."))
        if foreign:
            raise ConfigError(
                f"output {root} is not empty and no warehouse (it holds {foreign[0]}); name another --output"
            )
