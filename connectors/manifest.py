"""The manifest: what an output folder was made from, written before anything is read."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.output_lock import FILE as LOCK_FILE
from headrace.connectors.output_lock import OutputLock
from headrace.schemas.errors import ConfigError

FILE = "manifest.json"
FORMAT = 1
STATUSES = ("started", "committed", "done")
"""started: rows may be written, none is in a table. committed: all tables have their rows. done: the ledger is written too."""
_SHOWN = 8


@dataclass(frozen=True)
class InputRecord:
    """One input file as the run saw it; unlike the plan's it has no path, which may change."""

    origin: str
    size_bytes: int
    checksum: str
    format: str
    compression: str


@dataclass
class Manifest:
    """What one output is made from. It holds the output's lock until :meth:`release`, or the end of a ``with`` block."""

    headrace: str
    """Version that makes the output; another one could write other bytes under the same names."""
    created: datetime
    now: datetime
    """Reference time of the run, UTC: the ingest time of every row that states none. Equal in every rerun."""
    inputs: list[InputRecord]
    configuration: dict[str, Any]
    status: str = "started"
    format: int = FORMAT
    out: Path = field(default=Path(), repr=False, compare=False)
    lock: OutputLock | None = field(default=None, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """32 hex characters of inputs and configuration; the same wherever inputs and output lie, and whatever ``now`` is."""
        content = {"inputs": [asdict(file) for file in self.inputs], "configuration": self.configuration}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def advance(self, status: str) -> None:
        """Saves that the run got this far; a rerun never falls back.

        Raises:
            ValueError: there is no such status.
            OutputError: the disk refused; the saved status is the old one.
        """
        if STATUSES.index(status) > STATUSES.index(self.status):
            before, self.status = self.status, status
            try:
                self._save()
            except BaseException:
                self.status = before
                raise

    def release(self) -> None:
        """Lets another run use the output; harmless when repeated."""
        if self.lock is not None:
            self.lock.release()

    def _save(self) -> None:
        content = {
            "format": self.format,
            "headrace": self.headrace,
            "created": _text(self.created),
            "status": self.status,
            "now": _text(self.now),
            "fingerprint": self.fingerprint,
            "inputs": [asdict(file) for file in self.inputs],
            "configuration": self.configuration,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        replace_file(self.out / FILE, text.encode("utf-8", "surrogatepass") + b"\n")

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def open_output(
    out: str | os.PathLike[str],
    *,
    files: Sequence[InputRecord],
    configuration: Mapping[str, Any],
    now: datetime | None,
    clock: Callable[[], datetime],
) -> Manifest:
    """Claims an output folder for one input and configuration; the first claim is saved before it returns.

    A folder claimed by the same input and configuration is a rerun: it gets the saved manifest with the saved ``now``.

    Args:
        out: the folder; made if its parent exists.
        files: the inputs, in any order.
        configuration: everything that decides which rows come out, as JSON values.
        now: the reference time with its zone, if the user gave one.
        clock: gives the reference time if not, and the time of creation.

    Raises:
        ConfigError: the folder was made from anything else (the message lists the differences), is no folder, is not
            headrace's, can't be written to, or is in use by another run.
    """
    out = Path(out)
    if now is not None and now.tzinfo is None:
        raise ConfigError(f"now is {now.isoformat()} without a zone; add one, for example {now.isoformat()}Z")
    _require_folder(out)
    lock = OutputLock(out)
    try:
        created = _utc(clock())
        wanted = Manifest(
            headrace=version("headrace"),
            created=created,
            now=created if now is None else _utc(now),
            inputs=_sorted(files),
            configuration=_as_json(configuration),
            out=out,
            lock=lock,
        )
        if not (out / FILE).exists():
            wanted._save()
            return wanted
        saved = load_manifest(out)
        differences = _differences(saved, wanted, compare_now=now is not None)
        if differences:
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise ConfigError(
                f"output {out} was made from another input or configuration: {'; '.join(differences[:_SHOWN])}{more}. "
                f"Name another --output, or delete {out} to start over"
            )
        saved.lock = lock
    except BaseException:
        lock.release()
        raise
    return saved


def load_manifest(out: str | os.PathLike[str]) -> Manifest:
    """Reads an output's manifest without claiming the output.

    Raises:
        ConfigError: there is none, or it is damaged, altered, or of a newer headrace.
    """
    path = Path(out) / FILE
    try:
        found = json.loads(path.read_text("utf-8", "surrogatepass"))
        if found["format"] != FORMAT:
            raise ConfigError(
                f"{path} has format {found['format']!r}, this headrace knows {FORMAT}; use headrace {found.get('headrace')}"
            )
        manifest = Manifest(
            headrace=found["headrace"],
            created=datetime.fromisoformat(found["created"]),
            now=datetime.fromisoformat(found["now"]),
            inputs=[InputRecord(**file) for file in found["inputs"]],
            configuration=found["configuration"],
            status=found["status"],
            out=Path(out),
        )
        intact = found["fingerprint"] == manifest.fingerprint and manifest.status in STATUSES
    except FileNotFoundError:
        raise ConfigError(f"{out} is no output of headrace: it has no {FILE}") from None
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {os.strerror(error.errno or 0)}; fix its permissions"
        ) from error
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); delete {out} to start over") from error
    if not intact:
        raise ConfigError(f"{path} was altered: its fingerprint does not match; delete {out} to start over")
    return manifest


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {out} is a file; name a folder")
    if not out.exists():
        if not out.parent.is_dir():
            raise ConfigError(
                f"output {out}: folder {out.parent} does not exist; create it, or name another --output"
            )
        try:
            out.mkdir()
        except FileExistsError:
            pass  # Another run made it just now; the lock decides.
        except OSError as error:
            raise ConfigError(
                f"output {out} can't be made: {os.strerror(error.errno or 0)}; fix the permissions of {out.parent} or name "
                "another --output"
            ) from error
    if not os.access(out, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"output {out} can't be written to: Permission denied; fix its permissions or name another --output"
        )
    if not (out / FILE).exists():
        # A run that was killed before its manifest leaves no more than these.
        foreign = [
            p.name for p in out.iterdir() if p.name != LOCK_FILE and not p.name.startswith(f".{FILE}.")
        ]
        if foreign and not (out / FILE).exists():
            raise ConfigError(
                f"output {out} is not empty and not made by headrace (it holds {sorted(foreign)[0]}); name another --output"
            )


def _sorted(files: Sequence[InputRecord]) -> list[InputRecord]:
    ordered = sorted(files, key=lambda file: file.origin)
    for one, next_ in pairwise(ordered):
        if one.origin == next_.origin:
            raise ConfigError(
                f"two inputs are named {one.origin}; read them from a common root, so that names differ"
            )
    return ordered


def _as_json(configuration: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(configuration), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"configuration holds what JSON can't: {error}") from error
    return found


def _differences(saved: Manifest, wanted: Manifest, *, compare_now: bool) -> list[str]:
    """Returns what keeps ``wanted`` from being a rerun of ``saved``, one short clause each."""
    found = []
    if saved.headrace != wanted.headrace:
        found.append(f"headrace was {saved.headrace}, is {wanted.headrace}")
    if compare_now and saved.now != wanted.now:
        found.append(f"now was {_text(saved.now)}, is {_text(wanted.now)}")
    old, new = _flat(saved.configuration), _flat(wanted.configuration)
    found += [
        f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    before = {file.origin: file for file in saved.inputs}
    after = {file.origin: file for file in wanted.inputs}
    found += [f"input {origin} is gone" for origin in sorted(before.keys() - after.keys())]
    found += [f"input {origin} is new" for origin in sorted(after.keys() - before.keys())]
    for origin in sorted(before.keys() & after.keys()):
        one, two = asdict(before[origin]), asdict(after[origin])
        changes = [f"{name} was {one[name]}, is {two[name]}" for name in one if one[name] != two[name]]
        if changes:
            found.append(f"input {origin} changed ({', '.join(changes)})")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Returns {dotted key: JSON text} of all leaves; empty objects and all arrays are leaves."""
    if isinstance(value, dict) and (value or not prefix):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat.update(_flat(inner, f"{prefix}.{key}" if prefix else key))
        return flat
    return {prefix: json.dumps(value, ensure_ascii=False)}


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
