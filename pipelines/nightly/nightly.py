"""The nightly pipeline: dates of a lake to a warehouse, and the dates that have to be run again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from headrace.pipelines.lineage.run_events import told
from headrace.pipelines.nightly.leftovers import remove_leftovers
from headrace.pipelines.nightly.local_days import days_between, local_day, yesterday
from headrace.pipelines.nightly.nightly_config import NightlyConfig
from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.pipelines.nightly.plan_day import read_snapshot
from headrace.pipelines.nightly.run_day import DayResult, run_day
from headrace.pipelines.nightly.stale_dates import StaleDate, stale_dates
from headrace.pipelines.nightly.warehouse import FILE, open_warehouse
from headrace.pipelines.settings import identity
from headrace.runners.options import prepare
from headrace.schemas.errors import ConfigError


@dataclass(frozen=True)
class NightlyResult:
    """What a nightly run did."""

    output: Path
    timezone: str
    lake_version: int
    days: list[DayResult]
    """Ascending."""
    stale: list[StaleDate]
    """Dates that have to be run again, ascending; ``--catch-up`` runs them."""
    elapsed_seconds: float


def run_nightly(
    config: NightlyConfig,
    dates: tuple[date, date] | None = None,
    *,
    catch_up: bool = False,
    beam_args: Sequence[str] = (),
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    on_day: Callable[[DayResult], None] = lambda day: None,
    on_table: Callable[[str], None] = lambda table: None,
) -> NightlyResult:
    """Runs dates one after another, and says which have to be run again.

    Each date is committed by itself: its rows in every table are replaced, and no other date's. Idempotent, see
    :func:`headrace.pipelines.nightly.run_day.run_day`.

    Args:
        config: what to read and write.
        dates: first and last, both included; None: yesterday in the warehouse's zone.
        catch_up: run the dates of :func:`headrace.pipelines.nightly.stale_dates.stale_dates` too. All dates are run in ascending
            order, and each once: one that an earlier one makes old comes after it.
        beam_args: options of Beam; ``--runner`` names the profile.
        clock: tells what yesterday is.
        on_day, on_table: called after each date, and after each table's commit.

    Raises:
        ConfigError: an option, lake, warehouse or date that would give a wrong result.
        InputError, UntrustedRunError, OutputError: as :func:`headrace.pipelines.nightly.run_day.run_day`; the dates before it are
            complete.
    """
    began = time.monotonic()
    config.require_paths()
    prepare(beam_args, config)
    snapshot = read_snapshot(config.lake)
    with open_warehouse(config, snapshot.table_id) as warehouse:
        remove_leftovers(warehouse)
        asked = _asked(dates, warehouse.zone, clock)
        todo: dict[date, list[str]] = {day: [] for day in asked}
        done: list[DayResult] = []
        while True:
            if catch_up:
                last = done[-1].day.date if done else date.min
                for each in stale_dates(warehouse, snapshot):
                    if each.date > last:
                        todo.setdefault(each.date, [each.reason])
            if not todo:
                break
            first = min(todo)
            reasons = todo.pop(first)
            day = local_day(first, warehouse.zone)
            with told(
                f"nightly.{warehouse.root.name}",
                inputs=[snapshot.root],
                outputs=[warehouse.path(name) for name in TABLES],
                configuration=identity(config),
                nominal=(day.start, day.end),
            ) as lineage:
                result = run_day(
                    warehouse,
                    config,
                    snapshot,
                    day,
                    beam_args=beam_args,
                    reasons=reasons,
                    on_table=on_table,
                )
                lineage.rows = {str(warehouse.path(name)): rows for name, rows in result.rows.items()}
            done.append(result)
            on_day(result)
        # What came meanwhile counts too.
        snapshot = read_snapshot(config.lake)
        return NightlyResult(
            output=Path(config.output),
            timezone=warehouse.zone.key,
            lake_version=snapshot.version,
            days=done,
            stale=stale_dates(warehouse, snapshot),
            elapsed_seconds=time.monotonic() - began,
        )


def list_stale(config: NightlyConfig) -> NightlyResult:
    """Returns the dates that have to be run again, and runs none; changes nothing.

    Raises:
        ConfigError: there is no warehouse, or it is of another lake or configuration.
    """
    began = time.monotonic()
    config.require_paths()
    if not (Path(config.output) / FILE).exists():
        raise ConfigError(
            f"output {config.output} is no warehouse: it has no {FILE}; run a date first (--date 2026-01-31)"
        )
    snapshot = read_snapshot(config.lake)
    warehouse = open_warehouse(config, snapshot.table_id, lock=False)
    stale = stale_dates(warehouse, snapshot)
    return NightlyResult(
        output=Path(config.output),
        timezone=warehouse.zone.key,
        lake_version=snapshot.version,
        days=[],
        stale=stale,
        elapsed_seconds=time.monotonic() - began,
    )


def _asked(dates: tuple[date, date] | None, zone: ZoneInfo, clock: Callable[[], datetime]) -> Sequence[date]:
    if dates is None:
        return [yesterday(clock(), zone)]
    first, last = dates
    if last < first:
        raise ConfigError(f"--from {first} is after --to {last}; swap them")
    found = [day.date for day in days_between(first, last, zone)]
    if not found:
        local_day(first, zone)
    return found
