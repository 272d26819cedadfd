"""Which dates have to be run again: their events changed in the lake, another date's run changed them, or they are half done."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from headrace.connectors.removals import gone_dates
from headrace.pipelines.nightly.local_days import local_day
from headrace.pipelines.nightly.plan_day import PARTITION, Snapshot, digest_of
from headrace.pipelines.nightly.warehouse import Warehouse

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class StaleDate:
    """A date to run again."""

    date: date
    reason: str


@dataclass(frozen=True)
class _Change:
    """A file that a commit added or removed with a change of data."""

    version: int
    low_us: int
    high_us: int
    """Event times that it may hold, both included."""


def stale_dates(warehouse: Warehouse, snapshot: Snapshot) -> list[StaleDate]:
    """Returns the dates that were run and would come out differently now, ascending.

    A date is old if a commit of the lake after the version that its run read added or removed a file with ``dataChange`` that may
    hold events of the date, or of the gap before it. Compaction rewrites files without it and does not count. Where the log's
    entries are gone (a checkpoint and its retention took them), a date is old if its files are others than those its run read: a
    compaction can't be told from new data then, and the reason says so. Nothing is missed, but a date may be named in vain: files
    without statistics count for their whole UTC date.

    Raises:
        ConfigError: a date's manifest is damaged.
    """
    found = []
    manifests = list(warehouse.manifests())
    gap_us = warehouse.gap // timedelta(microseconds=1)
    candidates = []
    for day, manifest in manifests:
        whole = local_day(day, warehouse.zone)
        if manifest.state == "done" and gone_dates(
            Path(snapshot.root).parent, whole.start_us - gap_us, whole.end_us
        ):
            continue  # What went by policy can't be made again; the tables keep what they have.
        if manifest.state != "done":
            found.append(StaleDate(day, "its run was interrupted while it was being committed"))
        elif manifest.rerun_because:
            found.append(StaleDate(day, "; ".join(manifest.rerun_because)))
        else:
            interval = local_day(day, warehouse.zone)
            low, high = interval.start_us - gap_us, interval.end_us
            # The same files hold the same events: no look into the log is needed.
            if digest_of(snapshot.overlapping(low, high)) != manifest.inputs:
                candidates.append((day, manifest.lake_version, low, high))
    if candidates:
        changes, first = _changes(snapshot, min(version for _, version, _, _ in candidates))
        for day, version, low, high in candidates:
            if version + 1 < first:
                reason = (
                    f"its files in the lake changed since version {version}; the log before version {first} is gone, so a "
                    "compaction can't be told from new data"
                )
                found.append(StaleDate(day, reason))
                continue
            mine = [c for c in changes if c.version > version and c.low_us < high and c.high_us >= low]
            if mine:
                versions = sorted({c.version for c in mine})
                which = f"version {versions[0]}" + (
                    f" to {versions[-1]}" if versions[-1] > versions[0] else ""
                )
                found.append(StaleDate(day, f"the lake's {which} changed {len(mine)} of its files"))
    return sorted(found, key=lambda each: each.date)


def _changes(snapshot: Snapshot, after: int) -> tuple[Sequence[_Change], int]:
    """Returns the changes of data after a version, and the first version from which on the log is whole."""
    changes: list[_Change] = []
    known = {file.path: (file.low_us, file.high_us) for file in snapshot.files}
    first = snapshot.version + 1
    for version in range(snapshot.version, after, -1):
        path = Path(snapshot.root) / "_delta_log" / f"{version:020d}.json"
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            break
        first = version
        for line in lines:
            entry = json.loads(line) if line.strip() else {}
            action = entry.get("add") or entry.get("remove")
            if action and action.get("dataChange", True):
                changes.append(_Change(version, *_bounds(action, known)))
    return changes, first


def _bounds(action: dict[str, Any], known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Returns the event times that a file may hold, by its statistics, else by its partition."""
    path = unquote(action["path"])
    if path in known:
        return known[path]
    partition = (action.get("partitionValues") or {}).get(PARTITION)
    if partition is None and path.startswith(f"{PARTITION}="):
        partition = path.partition("/")[0].removeprefix(f"{PARTITION}=")
    low = _micros(datetime.fromisoformat(partition).replace(tzinfo=UTC)) if partition else -(2**62)
    high = low + _DAY_US - 1 if partition else 2**62
    statistics = json.loads(action["stats"]) if action.get("stats") else {}
    least, most = (statistics.get(name, {}).get("event_time") for name in ("minValues", "maxValues"))
    return (
        low if least is None else _micros(_time(least)),
        high if most is None else _micros(_time(most)) + 999,
    )


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _micros(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
