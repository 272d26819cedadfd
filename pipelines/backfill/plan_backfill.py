"""Planning a backfill: what is read for which dates, checked against what the archive can give."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from importlib.metadata import version
from typing import Any

from headrace.connectors.archive_files import Archive, ArchiveFile, find_archive
from headrace.connectors.archive_plan import ArchiveSplit, PlannedFile, checksum_of, open_file, splits_of
from headrace.pipelines.backfill.backfill_config import ONE_DAY, BackfillConfig
from headrace.schemas.errors import ConfigError, InputError

_SHOWN = 8
_AT_ONCE = 8


@dataclass(frozen=True)
class BackfillPlan:
    """What is read for which dates."""

    archive: Archive
    dates: tuple[date, ...]
    files: tuple[PlannedFile, ...]
    """Those that may hold rows of the dates, ordered by origin."""
    checksums: dict[str, str]
    """By origin; a plan that is only shown has those of files of equal size."""
    missing: tuple[date, ...]
    """Dates without a file of their own."""
    now: datetime | None
    """Of files without a date; None if there are none."""
    days_before: int
    days_after: int
    split_bytes: int

    def files_of(self, day: date) -> list[PlannedFile]:
        """Returns the files that may hold rows of a date: in its own folder and those around, and all that lie in none."""
        low, high = day - ONE_DAY * self.days_before, day + ONE_DAY * self.days_after
        return [p for p in self.files if p.file.date is None or low <= p.file.date <= high]

    def splits(self, days: Sequence[date]) -> list[ArchiveSplit]:
        """Returns what is read for neighbouring dates."""
        wanted = {p.file.origin: p for day in days for p in self.files_of(day)}
        found: list[ArchiveSplit] = []
        for _, planned in sorted(wanted.items()):
            job = (days[0], days[-1])
            found += splits_of(planned, len(found), job, self._reach(planned), self.now, self.split_bytes)
        return found

    def _reach(self, planned: PlannedFile) -> tuple[date, date] | None:
        """The dates that :meth:`files_of` gives the file to: so a date's rows never depend on the job's other dates."""
        day = planned.file.date
        return None if day is None else (day - ONE_DAY * self.days_after, day + ONE_DAY * self.days_before)

    def rows_of(self, day: date) -> int:
        """Returns how many rows the files of the date's own folder have; without folders, how many may be of the date."""
        return sum(
            g.rows
            for p in self.files_of(day)
            for g in p.groups
            if g.may_hold(day, day) and p.file.date in (day, None)
        )

    def jobs(self, days: Sequence[date], rows_at_once: int) -> list[list[date]]:
        """Cuts dates into those that one job takes together: neighbours with about so many rows."""
        found: list[list[date]] = []
        rows = 0
        for day in days:
            of_day = self.rows_of(day)
            if (
                not found
                or rows + of_day > rows_at_once
                or found[-1][-1] + ONE_DAY != day
                or len(found[-1]) >= 31
            ):
                found.append([])
                rows = 0
            found[-1].append(day)
            rows += of_day
        return found

    def fingerprint(self, day: date, configuration: dict[str, Any]) -> str:
        """Returns 32 hex characters of all that decides which rows a date gets."""
        content = {
            "headrace": version("headrace"),
            "date": day.isoformat(),
            "configuration": configuration,
            "now": None if self.now is None else self.now.isoformat(),
            "last": self.dates[-1].isoformat() if self.now is not None else None,
            "files": [
                [p.file.origin, p.file.size_bytes, self.checksums[p.file.origin]] for p in self.files_of(day)
            ],
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def inputs(self) -> list[dict[str, Any]]:
        """Returns what tells these files from others, as JSON values."""
        return [
            {
                "origin": p.file.origin,
                "size_bytes": p.file.size_bytes,
                "checksum": self.checksums[p.file.origin],
            }
            for p in self.files
        ]

    def require_unchanged(self) -> None:
        """Looks at the files again, after they were read.

        Raises:
            InputError: one has changed, or is gone, since it was planned.
        """
        changed = [p.file.origin for p in self.files if not _is_as_planned(p.file)]
        if changed:
            raise InputError(
                f"{listed(changed)} changed while the backfill read the archive; nothing of this job was committed. Run the same "
                "command again when nothing writes to the archive"
            )


def plan_backfill(config: BackfillConfig, *, checksums: bool = True) -> BackfillPlan:
    """Plans a backfill; reads footers, and with ``checksums`` every byte of the files that it names.

    Raises:
        ConfigError: the archive can't give what is asked for; the message has the reason and the fix.
        InputError: files that can't be read, all of them named.
    """
    dates = config.dates()
    archive = find_archive(config.archive, exclude=config.exclude)
    low, high = dates[0] - ONE_DAY * config.days_before, dates[-1] + ONE_DAY * config.days_after
    wanted = [f for f in archive.files if f.date is None or low <= f.date <= high]
    planned = _opened(config, wanted)
    now = _reference(config, planned)
    have = {p.file.date for p in planned}
    missing = () if None in have else tuple(day for day in dates if day not in have)
    if missing and not config.allow_missing:
        raise ConfigError(
            f"the archive has no file for {listed([d.isoformat() for d in missing])} ({len(missing)} of {len(dates)} dates); fetch "
            "them, ask for other dates, or say --allow-missing to write them as far as files of other dates have their events"
        )
    sums = _checksums([p.file for p in planned], every=checksums)
    _refuse_doubled(planned, sums)
    return BackfillPlan(
        archive,
        tuple(dates),
        tuple(planned),
        sums,
        missing,
        now,
        config.days_before,
        config.days_after,
        config.split_bytes,
    )


def differences(saved: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    """Returns what is no longer as a plan had it, one short clause each."""
    before = {f["origin"]: f for f in saved}
    after = {f["origin"]: f for f in found}
    changes = [f"{o} is gone" for o in sorted(before.keys() - after.keys())]
    changes += [f"{o} is new" for o in sorted(after.keys() - before.keys())]
    return changes + [f"{o} changed" for o in sorted(before.keys() & after.keys()) if before[o] != after[o]]


def listed(names: Sequence[str]) -> str:
    """Returns names joined by commas, the first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _opened(config: BackfillConfig, files: Sequence[ArchiveFile]) -> list[PlannedFile]:
    """Reads all footers; every file that can't be read is named before anything is written."""
    times: list[str] | None = [] if config.mapping else None
    opened, errors = [], []
    for file in files:
        try:
            opened.append(open_file(file, config.ingest_column or None, times))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError(
            "; ".join(errors[:_SHOWN])
            + (f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else "")
        )
    return opened


def _reference(config: BackfillConfig, files: Sequence[PlannedFile]) -> datetime | None:
    undated = [p for p in files if p.file.date is None]
    if config.now is not None and not undated:
        raise ConfigError(
            "--now is for files that lie in no dated folder; these do, and each event is judged against its own ingest time or the "
            "end of its folder's date: leave --now out"
        )
    if not undated or config.now is not None:
        return config.now
    without = [
        p.file.origin
        for p in undated
        if any(g.arrived is None for g in p.groups if g.rows) or p.ingest_column is None
    ]
    if without:
        raise ConfigError(
            f"{listed(without)} lie in no dated folder and do not state every row's ingest time in a column "
            f"{config.ingest_column or 'of their own'}, so stale events can't be told; name the column with --ingest-column, or "
            "give one reference time for all of them with --now, such as the end of the data (and --max-age-seconds to reach back "
            "to its beginning)"
        )
    return None


def _checksums(files: Sequence[ArchiveFile], *, every: bool) -> dict[str, str]:
    sizes: dict[int, int] = {}
    for file in files:
        sizes[file.size_bytes] = sizes.get(file.size_bytes, 0) + 1
    wanted = [f for f in files if every or sizes[f.size_bytes] > 1]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip((f.origin for f in wanted), pool.map(checksum_of, wanted), strict=True))


def _refuse_doubled(files: Sequence[PlannedFile], checksums: dict[str, str]) -> None:
    seen: dict[str, PlannedFile] = {}
    doubled = []
    for planned in files:
        digest = checksums.get(planned.file.origin)
        if digest is None or not planned.rows:
            continue
        first = seen.setdefault(digest, planned)
        if first is not planned and first.file.date != planned.file.date:
            doubled.append(f"{planned.file.origin} is {first.file.origin} again")
    if doubled:
        raise ConfigError(
            f"the archive holds the same file under two dates: {listed(doubled)}; leave the wrong one out with --exclude, and "
            "fetch what should be in its place"
        )


def _is_as_planned(file: ArchiveFile) -> bool:
    try:
        found = os.stat(file.path)
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.changed_ns)
