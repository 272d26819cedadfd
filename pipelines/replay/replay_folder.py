"""What a replay leaves in ``OUT/replays/ID``: its plan and result, and, while it is not done, what it has made."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.delta_commit import committed_files
from headrace.connectors.write_lake import WrittenFile
from headrace.schemas.errors import ConfigError

FOLDER = "replays"
FILE = "replay.json"
STARTED, PREPARED, DONE = "started", "prepared", "done"


@dataclass
class ReplayRecord:
    """One replay. Written when it starts, before its first commit (``prepared``: it can be finished from here) and at its end."""

    id: str
    """16 hex characters of what was selected, the fixes and the definition."""
    started: str
    where: str | None
    fixes: str | None
    """Text of the file of fixes."""
    state: str = STARTED
    selected: int = 0
    recovered: int = 0
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    """{stage: {reason: rows}} of the rows that failed again."""
    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    """{stage: {reason: rows}} of the rows that were recovered or failed again, by what they were rejected for before."""
    waiting: dict[str, int] = field(default_factory=dict)
    """Why rows were left as they are → rows."""
    parked: int = 0
    """Rows that have failed as often as they may; left as they are."""
    corrected: dict[str, int] = field(default_factory=dict)
    """Window table → windows that moved."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """Files of the lake that it adds."""
    ledger: dict[str, Any] | None = None
    """The batch's ledger after it."""

    def written(self) -> list[WrittenFile]:
        return [WrittenFile(**file) for file in self.files]


class ReplayFolder:
    """The folder of one replay.

    Args:
        out: the output.
    """

    def __init__(self, out: Path, id_: str) -> None:
        self.path = out / FOLDER / id_

    @property
    def stage(self) -> Path:
        return self.path / "stage.arrow"

    @property
    def taken(self) -> Path:
        """The places of the rows that recovered or failed again."""
        return self.path / "taken.parquet"

    @property
    def outcome(self) -> Path:
        """The rows that failed again, as they are to be."""
        return self.path / "outcome.parquet"

    @property
    def corrections(self) -> Path:
        return self.path / "corrections"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    def save(self, record: ReplayRecord) -> None:
        """Writes the record in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
        replace_file(self.path / FILE, text.encode("utf-8", "surrogatepass") + b"\n")

    def clear(self) -> None:
        """Deletes all but the record."""
        for path in (self.corrections, self.metrics):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.stage, self.taken, self.outcome):
            path.unlink(missing_ok=True)


def records(out: Path) -> Iterator[ReplayRecord]:
    """Yields the replays of an output, by their start.

    Raises:
        ConfigError: a record is damaged.
    """
    found = []
    root = out / FOLDER
    for path in sorted(root.glob(f"*/{FILE}")) if root.is_dir() else []:
        try:
            found.append(ReplayRecord(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); restore it from a copy: it says what a replay has changed in {out}"
            ) from error
    yield from sorted(found, key=lambda record: (record.started, record.id))


def remove_unprepared(out: Path, record: ReplayRecord) -> None:
    """Deletes what a replay left that was interrupted before it could commit anything."""
    folder = ReplayFolder(out, record.id)
    root = out / "events"
    left = set(root.glob(f"*/part-{file_stem(record.id)}*.parquet"))
    for path in left - {root / path for path in committed_files(root)} if left else ():
        os.unlink(path)
    shutil.rmtree(folder.path, ignore_errors=True)


def file_stem(id_: str) -> str:
    """Returns the stem of the lake's files of a replay."""
    return f"replay-{id_}"
