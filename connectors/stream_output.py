"""What a stream's output folder was made from, and by which jobs: ``OUT/stream.json``."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.output_lock import FILE as LOCK_FILE
from headrace.connectors.output_lock import OutputLock
from headrace.schemas.errors import ConfigError

FILE = "stream.json"
FORMAT = 1


@dataclass
class JobRecord:
    """One job that wrote to the output: what its state belongs to."""

    name: str
    """Unique in the output; names the job in transactions and files."""
    started: str
    source: str
    """The source's name, without secrets."""
    layout: dict[str, Any]
    """What the runner's state fits to: readers, shards, first positions."""
    configuration: dict[str, Any]
    """What decides the rows."""
    state: str | None = None
    """The last savepoint or checkpoint that is known; the same job goes on from there."""

    @classmethod
    def new(
        cls,
        before: Sequence["JobRecord"],
        *,
        source: str,
        layout: Mapping[str, Any],
        configuration: Mapping[str, Any],
        clock: Callable[[], datetime],
    ) -> "JobRecord":
        """Returns a job that is not yet saved, under a name that none before it has."""
        started = clock().astimezone(UTC)
        return cls(
            name=f"s{len(before) + 1:04d}-{started:%Y%m%d-%H%M%S}",
            started=started.isoformat().replace("+00:00", "Z"),
            source=source,
            layout=dict(layout),
            configuration=dict(configuration),
        )


@dataclass
class StreamOutput:
    """The folder and its jobs, the last one at the end. Holds the output's lock until :meth:`release`."""

    out: Path
    jobs: list[JobRecord] = field(default_factory=list)
    lock: OutputLock | None = field(default=None, repr=False, compare=False)

    @property
    def last(self) -> JobRecord | None:
        return self.jobs[-1] if self.jobs else None

    def add(self, job: JobRecord) -> None:
        """Saves a new job."""
        self.jobs.append(job)
        self.save()

    def save(self) -> None:
        """Writes the file.

        Raises:
            OutputError: the disk refused; what was there is unchanged.
        """
        content = {
            "format": FORMAT,
            "headrace": version("headrace"),
            "jobs": [asdict(job) for job in self.jobs],
        }
        replace_file(self.out / FILE, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def release(self) -> None:
        """Lets another run use the output; harmless when repeated."""
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> "StreamOutput":
        return self

    def __exit__(self, *details: object) -> None:
        self.release()


def open_stream_output(out: str | os.PathLike[str]) -> StreamOutput:
    """Claims a folder for a stream; it is made if its parent exists.

    Raises:
        ConfigError: it is no folder, holds something else than a stream's output, can't be written to, or is in use.
    """
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {out} is a file; name a folder")
    if not folder.parent.is_dir():
        raise ConfigError(
            f"output {out}: folder {folder.parent} does not exist; create it, or name another --output"
        )
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output {out} can't be made: {os.strerror(error.errno or 0)}; fix the permissions of {folder.parent} or name "
            "another --output"
        ) from error
    path = folder / FILE
    if not path.exists():
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK_FILE, f".{FILE}"))
        if foreign:
            raise ConfigError(
                f"output {out} is not empty and not a stream's (it holds {foreign[0]}); name another --output"
            )
    lock = OutputLock(folder)
    try:
        return StreamOutput(folder, read_jobs(folder), lock)
    except BaseException:
        lock.release()
        raise


def read_jobs(out: str | os.PathLike[str]) -> list[JobRecord]:
    """Returns the jobs that wrote to an output, without claiming it; none if it has none yet.

    Raises:
        ConfigError: the file that lists them is damaged, or of a newer headrace.
    """
    path = Path(out) / FILE
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise ConfigError(
                f"{path} has format {found['format']!r}, this headrace knows {FORMAT}; use headrace {found.get('headrace')}"
            )
        return [JobRecord(**job) for job in found["jobs"]]
    except FileNotFoundError:
        return []
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!r}); the lake beside it is whole: restore the file from a copy, or read into another "
            "--output"
        ) from error
