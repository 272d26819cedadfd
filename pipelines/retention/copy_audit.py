"""Copies of an output's proofs: its ledgers, manifests and the records of what was changed later."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from headrace.connectors.atomic_file import AtomicFile, OutputError, naming

_FILES = ("manifest.json", "ledger.json", "stream.json", "warehouse.json")
_BELOW = ("replays", "retention", "_backfill/dates", "_runs", "ledger")
"""Folders with JSON files, and the Delta table of a stream's ledger with its log."""
_KEPT = (".json", ".parquet")


def copy_audit(out: Path, target: Path) -> int:
    """Copies what is new or changed; what is there and no more in the output stays. Returns how many files were copied.

    A stream's ledger is copied log last, so that every file that the copied log names is there.

    Raises:
        OutputError: the disk refused; the next call goes on from there.
    """
    copied = 0
    for path in _proofs(out):
        to = target / path.relative_to(out)
        try:
            before = path.stat()
            if to.exists() and (to.stat().st_size, to.stat().st_mtime_ns) == (
                before.st_size,
                before.st_mtime_ns,
            ):
                continue
            _copy(path, to)
            copied += 1
        except (FileNotFoundError, OutputError):
            if path.exists():
                raise
            continue  # A running stream has compacted its ledger meanwhile; the next call gets what replaced it.
    return copied


def _copy(path: Path, to: Path) -> None:
    file = AtomicFile(to)
    try:
        with naming(to):
            shutil.copy2(path, file.temporary)
    except BaseException:
        file.discard()
        raise
    file.commit()


def _proofs(out: Path) -> Iterator[Path]:
    for name in _FILES:
        if (out / name).is_file():
            yield out / name
    for name in _BELOW:
        found = [
            path
            for path in (out / name).rglob("*")
            if path.suffix in _KEPT and not path.name.startswith(".") and path.is_file()
        ]
        log = [path for path in found if path.parent.name == "_delta_log"]
        yield from sorted(path for path in found if path not in log and _is_proof(path, name))
        # The pointer to the newest checkpoint comes after what it points to.
        yield from sorted(log, key=lambda path: (path.suffix == ".json", os.fspath(path)))
    checkpoint = out / "ledger" / "_delta_log" / "_last_checkpoint"
    if checkpoint.is_file():
        yield checkpoint


def _is_proof(path: Path, folder: str) -> bool:
    """What a replay has made and not committed yet is no proof of anything."""
    return path.suffix == ".json" or folder == "ledger"
