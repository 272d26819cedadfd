"""The backfill pipeline: dates of an archive of Parquet files to the same dates of a lake, each replaced as a whole."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from headrace.connectors.atomic_file import replace_file
from headrace.connectors.map_fields import compile_mapping
from headrace.pipelines.backfill.backfill_config import BackfillConfig
from headrace.pipelines.backfill.backfill_folder import (
    BackfillFolder,
    DateManifest,
    manifest_from,
    open_folder,
    saved_plan,
)
from headrace.pipelines.backfill.commit_date import commit_date, finish_dates, is_committed, is_written
from headrace.pipelines.backfill.plan_backfill import BackfillPlan, differences, listed, plan_backfill
from headrace.pipelines.backfill.run_dates import discard, run_dates
from headrace.pipelines.build_definition import build_definition, definition_identity
from headrace.pipelines.definition import Definition
from headrace.pipelines.progress import Progress
from headrace.runners.options import prepare
from headrace.schemas.errors import ConfigError, UntrustedRunError


@dataclass(frozen=True)
class DateResult:
    """What one date got."""

    date: date
    accepted: int
    rejected: dict[str, dict[str, int]]
    """{stage: {reason: rows}}"""
    already_done: bool
    """True if nothing had changed since the date was written, so that there was nothing to do."""


@dataclass(frozen=True)
class BackfillResult:
    """What a backfill did."""

    output: Path
    ledger: dict[str, Any]
    """As in ``OUT/ledger.json``."""
    dates: list[DateResult]
    missing: list[date]
    """Dates without a file of their own."""
    elapsed_seconds: float
    rows_read: int = 0
    """By the jobs of this call."""
    counts: dict[str, int] = field(default_factory=dict)
    """Counts beside the rows, such as failed lookups, by ``stage.name``."""


def run_backfill(
    config: BackfillConfig,
    *,
    resume: bool = False,
    beam_args: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_date: Callable[[DateResult], None] = lambda found: None,
    on_table: Callable[[str], None] = lambda table: None,
) -> BackfillResult:
    """Writes dates of an archive to ``OUT/events``, ``OUT/quarantine`` and ``OUT/metrics``, and the account to ``OUT/ledger.json``.

    A date's rows depend on the archive and the configuration alone, never on which dates are asked for together; equal input gives
    equal bytes. A date whose files and configuration are those of its last run is left alone. Idempotent: after a crash, however
    hard, the same call goes on.

    Args:
        resume: go on with the saved plan; files that are no longer as it had them are refused.
        beam_args: options of Beam; ``--runner`` names the profile.
        on_progress: called about twice a second from another thread.
        on_date, on_table: called after each date is committed, and after each of its tables.

    Raises:
        ConfigError: an option, archive, plan or existing output that would give a wrong result.
        InputError: a file that can't be read, or changed while it was.
        UntrustedRunError: the rows do not add up; nothing of these dates is committed.
        OutputError: the disk refused.
    """
    began = time.monotonic()
    config.require_paths()
    if config.mapping:
        compile_mapping(config.mapping)
    prepare(beam_args, config)
    saved = saved_plan(config.output) if resume else None
    definition = build_definition(config)
    identity = definition_identity(config, definition)
    plan = plan_backfill(config)
    if saved is not None:
        _require_planned(saved, plan, identity)
    fingerprints = {day: plan.fingerprint(day, identity) for day in plan.dates}
    with open_folder(config.output, key=definition.key.fingerprint) as folder:
        account = _Account(folder, config, plan, fingerprints, identity)
        results: dict[date, DateResult] = {}
        account.restore()
        _finish_interrupted(folder, definition, fingerprints, on_table)
        for day in plan.dates:
            manifest = folder.manifest(day)
            if manifest is None or manifest.state != "done" or manifest.fingerprint != fingerprints[day]:
                continue
            if is_committed(folder, manifest):
                results[day] = _result(manifest, already_done=True)
        todo = [day for day in plan.dates if day not in results]
        if todo:
            account.open()
        rows_read = 0
        for days in plan.jobs(todo, config.rows_at_once):
            ledger, manifests = run_dates(
                folder,
                config,
                definition,
                plan,
                {day: fingerprints[day] for day in days},
                beam_args=beam_args,
                on_progress=on_progress,
                began=began,
            )
            rows_read += ledger.rows_in
            account.add(days, ledger.as_dict(), manifests)
            for manifest in manifests:
                folder.save(manifest)
            for manifest in manifests:
                commit_date(folder, definition, manifest, on_table=on_table)
                results[date.fromisoformat(manifest.date)] = found = _result(manifest, already_done=False)
                on_date(found)
            finish_dates(folder, definition, manifests)
        discard(folder)
        ledger_now = account.close()
        counts: dict[str, int] = {}
        for day in plan.dates:
            done = folder.manifest(day)
            for name, count in (done.counts if done else {}).items():
                counts[name] = counts.get(name, 0) + count
    return BackfillResult(
        output=Path(config.output),
        ledger=ledger_now,
        dates=[results[day] for day in plan.dates],
        missing=list(plan.missing),
        elapsed_seconds=time.monotonic() - began,
        rows_read=rows_read,
        counts=dict(sorted(counts.items())),
    )


class _Account:
    """The plan and its jobs' ledgers, saved as they come, and the ledger of the whole."""

    def __init__(
        self,
        folder: BackfillFolder,
        config: BackfillConfig,
        plan: BackfillPlan,
        fingerprints: Mapping[date, str],
        identity: Mapping[str, Any],
    ) -> None:
        self._folder, self._plan = folder, plan
        wanted = {
            "archive": plan.archive.root,
            "first": config.first,
            "last": config.last,
            "exclude": config.exclude,
            "allow_missing": config.allow_missing,
            "now": None if config.now is None else config.now.isoformat(),
            "files": plan.inputs(),
            "fingerprints": {day.isoformat(): found for day, found in fingerprints.items()},
            "configuration": dict(identity),
        }
        before = folder.plan()
        same = before is not None and all(before.get(name) == value for name, value in wanted.items())
        self._content: dict[str, Any] = (
            before if same and before is not None else {**wanted, "state": "new", "jobs": {}}
        )
        self._opened = self._content["state"] == "started"

    def open(self) -> None:
        """Saves that the plan is being carried out."""
        if not self._opened:
            self._content |= {"state": "started", "jobs": {}}
            self._opened = True
            self._folder.save_plan(self._content)

    def restore(self) -> None:
        """Saves the manifests of a job that was checked by a run that did not live to save all of them."""
        for job in self._content["jobs"].values() if self._opened else ():
            for fields in job.get("manifests", ()):
                manifest = manifest_from(fields)
                found = self._folder.manifest(date.fromisoformat(manifest.date))
                if found is None or found.fingerprint != manifest.fingerprint:
                    self._folder.save(manifest)

    def add(self, days: Sequence[date], ledger: Mapping[str, Any], manifests: Sequence[DateManifest]) -> None:
        """Saves a checked job with its ledger; one that is made again replaces itself."""
        names = [day.isoformat() for day in days]
        jobs = {k: j for k, j in self._content["jobs"].items() if not set(j["dates"]) & set(names)}
        for job in jobs.values():
            job.pop("manifests", None)  # They are committed.
        fields = [asdict(manifest) for manifest in manifests]
        self._content["jobs"] = {**jobs, names[0]: {"dates": names, **ledger, "manifests": fields}}
        self._folder.save_plan(self._content)

    def close(self) -> dict[str, Any]:
        """Writes ``OUT/ledger.json`` if anything was done, and returns the account.

        Raises:
            UntrustedRunError: it does not balance.
        """
        path = self._folder.root / "ledger.json"
        if not self._opened and path.exists():
            found: dict[str, Any] = json.loads(path.read_bytes())
            if (found.get("from"), found.get("to")) == (self._content["first"], self._content["last"]):
                return found
        ledger = self._ledger()
        replace_file(path, json.dumps(ledger, indent=2).encode() + b"\n")
        for job in self._content["jobs"].values():
            job.pop("manifests", None)
        self._content["state"] = "done"
        self._folder.save_plan(self._content)
        if not ledger["balanced"]:
            raise UntrustedRunError(
                f"rows in {ledger['rows_in']:,} ≠ accepted {ledger['accepted']:,} + rejected + outside {ledger['outside']:,}; the "
                "output can't be trusted: run again with another --output, and report it as a bug with ledger.json"
            )
        return ledger

    def _ledger(self) -> dict[str, Any]:
        manifests = [m for day in self._plan.dates if (m := self._folder.manifest(day)) is not None]
        jobs = self._content["jobs"].values()
        in_jobs = {name for job in jobs for name in job["dates"]}
        kept = sum(m.rows for m in manifests if m.date not in in_jobs)
        accepted = sum(m.accepted for m in manifests)
        rejected: dict[str, dict[str, int]] = {}
        for manifest in manifests:
            for stage, reasons in manifest.rejected.items():
                of_stage = rejected.setdefault(stage, {})
                for reason, rows in reasons.items():
                    of_stage[reason] = of_stage.get(reason, 0) + rows
        total = sum(sum(reasons.values()) for reasons in rejected.values())
        rows_in = sum(job["rows_in"] for job in jobs) + kept
        outside = sum(job["outside"] for job in jobs)
        return {
            "from": self._content["first"],
            "to": self._content["last"],
            "rows_in": rows_in,
            "accepted": accepted,
            "rejected": {stage: dict(sorted(r.items())) for stage, r in sorted(rejected.items())},
            "outside": outside,
            "balanced": rows_in == accepted + total + outside,
            "dates": {m.date: {"accepted": m.accepted, "rejected": m.rejected} for m in manifests},
        }


def _finish_interrupted(
    folder: BackfillFolder,
    definition: Definition,
    fingerprints: Mapping[date, str],
    on_table: Callable[[str], None],
) -> None:
    """Commits dates that were checked by a run that did not live to commit them, unless they are to be made anew."""
    finished = []
    for day, manifest in list(folder.manifests()):
        wanted = fingerprints.get(day, manifest.fingerprint)
        if manifest.state == "written" and manifest.fingerprint == wanted and is_written(folder, manifest):
            commit_date(folder, definition, manifest, on_table=on_table)
            finished.append(manifest)
    if finished:
        finish_dates(folder, definition, finished)


def _require_planned(saved: Mapping[str, Any], plan: BackfillPlan, identity: Mapping[str, Any]) -> None:
    """Refuses to go on with a plan that no longer holds.

    Raises:
        ConfigError: what has changed.
    """
    changed = differences(saved["files"], plan.inputs())
    if changed:
        raise ConfigError(
            f"--resume: the archive is no longer what was planned: {listed(changed)}. Leave --resume out to plan anew: dates whose "
            "files changed are made again, the others are left as they are"
        )
    names = sorted(
        n for n in {*saved["configuration"], *identity} if saved["configuration"].get(n) != identity.get(n)
    )
    dates = [saved["first"], saved["last"]] != [plan.dates[0].isoformat(), plan.dates[-1].isoformat()]
    if names or dates:
        what = ", ".join([*(["the dates"] if dates else []), *names])
        raise ConfigError(
            f"--resume: the plan was made with other settings ({what}); give the same again, or leave --resume out to plan anew"
        )


def _result(manifest: DateManifest, *, already_done: bool) -> DateResult:
    return DateResult(date.fromisoformat(manifest.date), manifest.accepted, manifest.rejected, already_done)
