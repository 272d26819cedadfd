"""The output of backfills: what holds for all of its dates, what was planned, and what each date got."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.output_lock import FILE as LOCK_FILE
from headrace.connectors.output_lock import OutputLock
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.errors import ConfigError

STATE = "_backfill"
FORMAT = 1
TABLES = ("events", "quarantine")


@dataclass
class DateManifest:
    """What a job read and wrote for one date."""

    date: str
    """ISO 8601."""
    fingerprint: str
    """32 hex characters of all that decides which rows the date gets."""
    files: dict[str, list[WrittenFile]]
    """By table."""
    partials: dict[str, str]
    """By the first of the metrics that share panes: the file with the date's panes, relative to the folder of the state."""
    accepted: int
    rejected: dict[str, dict[str, int]]
    """{stage: {reason: rows}}"""
    counts: dict[str, int] = field(default_factory=dict)
    state: str = "written"
    """written: checked, and being committed; done: the tables have the rows."""
    headrace: str = ""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return self.accepted + sum(sum(reasons.values()) for reasons in self.rejected.values())


class BackfillFolder:
    """An output that no other run writes to meanwhile; use it in a ``with`` block."""

    def __init__(self, root: Path, lock: OutputLock | None) -> None:
        self.root = root
        self.state = root / STATE
        self.staging = root / "_work" / "tables"
        self._lock = lock

    def table(self, name: str) -> Path:
        return self.root / name

    def manifest(self, day: date) -> DateManifest | None:
        """Returns what a date's last job left; None if there was none.

        Raises:
            ConfigError: it is damaged, or of a newer headrace.
        """
        path = self._path(day)
        if not path.exists():
            return None
        found = _read(path)
        try:
            return manifest_from(found)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}); delete it and run its date again") from error

    def manifests(self) -> Iterator[tuple[date, DateManifest]]:
        """Yields all dates that have rows or were written, ascending."""
        for path in sorted((self.state / "dates").glob("????-??-??.json")):
            manifest = self.manifest(date.fromisoformat(path.stem))
            if manifest is not None:
                yield date.fromisoformat(path.stem), manifest

    def save(self, manifest: DateManifest) -> None:
        """Writes a date's manifest, whole or not at all.

        Raises:
            OutputError: the disk refused.
        """
        manifest.headrace = version("headrace")
        text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
        replace_file(self._path(date.fromisoformat(manifest.date)), text.encode() + b"\n")

    def plan(self) -> dict[str, Any] | None:
        """Returns the last plan, as :meth:`save_plan` wrote it; None if there is none."""
        path = self.state / "plan.json"
        return _read(path) if path.exists() else None

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **plan}, indent=1, ensure_ascii=False)
        replace_file(self.state / "plan.json", text.encode("utf-8", "surrogatepass") + b"\n")

    def _path(self, day: date) -> Path:
        return self.state / "dates" / f"{day.isoformat()}.json"

    def __enter__(self) -> "BackfillFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()


def manifest_from(fields: Mapping[str, Any]) -> DateManifest:
    """Builds a manifest from its JSON."""
    files = {n: [WrittenFile(**f) for f in each] for n, each in fields["files"].items()}
    return DateManifest(**{**fields, "files": files})


def open_folder(output: str, *, key: str) -> BackfillFolder:
    """Opens the output of earlier backfills, or makes a new one.

    Args:
        key: the key's fingerprint; one output has one key, or a user would have two tokens.

    Raises:
        ConfigError: the folder is no output of backfills, was made with another key, or is in use by another run.
    """
    root = Path(output).absolute()
    marker = root / STATE / "output.json"
    if not marker.exists():
        _require_new(root)
    root.mkdir(exist_ok=True)
    lock = OutputLock(root)
    try:
        if not marker.exists():
            content = {"format": FORMAT, "headrace": version("headrace"), "key": key}
            replace_file(marker, json.dumps(content, indent=1).encode() + b"\n")
        saved = _read(marker)
        if saved.get("key") != key:
            raise ConfigError(
                f"output {root} was made with another key ({saved.get('key')}, this one is {key}), so one user would have two "
                "tokens; name that key with --key-file, or another --output"
            )
    except BaseException:
        lock.release()
        raise
    return BackfillFolder(root, lock)


def saved_plan(output: str) -> dict[str, Any]:
    """Returns the plan that an output's last backfill saved.

    Raises:
        ConfigError: there is none.
    """
    plan = BackfillFolder(Path(output).absolute(), None).plan()
    if plan is None:
        raise ConfigError(
            f"--resume: output {output} has no plan of a backfill; start one with --archive, --from and --to"
        )
    return plan


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8", "surrogatepass"))
        known = found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); restore it, or name another --output") from error
    if known != FORMAT:
        raise ConfigError(
            f"{path} has format {known!r}, this headrace knows {FORMAT}; use headrace {found.get('headrace')}"
        )
    return found


def _require_new(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output {root} is a file; name a folder")
    if not root.parent.is_dir():
        raise ConfigError(
            f"output {root}: folder {root.parent} does not exist; create it, or name another --output"
        )
    if root.exists():
        foreign = sorted(n for n in os.listdir(root) if n not in (LOCK_FILE, STATE))
        if foreign:
            raise ConfigError(
                f"output {root} is not empty and was not made by a backfill (it holds {foreign[0]}): a batch or a stream keeps "
                "account of its own rows, so their dates can't be replaced from outside; name another --output"
            )
