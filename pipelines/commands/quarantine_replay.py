"""``headrace quarantine replay``: rejected rows through the stages again."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.settings import identity

if TYPE_CHECKING:
    from headrace.pipelines.replay.run_replay import ReplayResult

EXAMPLE = "headrace quarantine replay out --where \"reason = 'pattern'\" --fix fixes.yaml --dry-run"


def replay(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output of a batch or a stream.")],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help="Rows to replay: what follows WHERE in SQL, over the quarantine's columns. Default: all.",
            show_default=False,
        ),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", metavar="FIXES", help="YAML file of fixes (docs/replay.md).", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would recover, what would fail, and which windows move."
        ),
    ] = False,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The run's configuration, with what was mended.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Family that all rows are held against.", show_default=False),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The key that the run had.", show_default=False),
    ] = None,
    most_attempts: Annotated[
        int, typer.Option(min=1, help="Rows that were rejected so often are left where they are.")
    ] = 3,
    all_ages: Annotated[
        bool,
        typer.Option(
            "--all-ages", help="Also young rows of a stream that has come to the end of its source."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Run rejected rows through the same stages again, with fixes.

    What recovers goes to the lake and out of the quarantine, what fails again stays with its new reason and a higher attempt.
    Window tables are corrected, and OUT/corrections says what changed. Exactly once, also after an interruption; a stream may
    go on meanwhile.
    """
    from headrace.pipelines.lineage.run_events import tables_below, told
    from headrace.pipelines.replay.fixes import load_fixes
    from headrace.pipelines.replay.run_replay import config_class, run_replay
    from headrace.schemas.registry import Registry

    config = load_settings(
        config_class(output), config_file, {"output": str(output), "schema": schema, "key_file": key_file}
    )
    fixes = [] if fix is None else load_fixes(fix, Registry.default())
    lineage = told(
        f"replay.{output.absolute().name}",
        inputs=[output / "quarantine"],
        outputs=tables_below(output),
        configuration=identity(config),
    )
    with nullcontext() if dry_run else lineage:
        result = run_replay(
            output,
            config,
            where=where,
            fixes=fixes,
            fixes_text=None if fix is None else fix.read_text("utf-8"),
            most_attempts=most_attempts,
            all_ages=all_ages,
            dry_run=dry_run,
        )
    typer.echo(
        json.dumps(as_dict(result), ensure_ascii=False) if as_json else describe(result, output, dry_run)
    )


def as_dict(result: "ReplayResult") -> dict[str, Any]:
    """Returns the result as JSON values."""
    record = {k: v for k, v in asdict(result.record).items() if k not in ("files", "ledger", "fixes")}
    return record | {"differences": result.differences, "finished_before": result.finished_before}


def describe(result: "ReplayResult", output: Path, dry_run: bool) -> str:
    """Returns the result in words."""
    record = result.record
    lines = [f"replay {id_} had been interrupted and is finished now" for id_ in result.finished_before]
    if result.differences:
        lines.append(f"settings that differ from the run's: {', '.join(result.differences)}")
    failed = sum(sum(reasons.values()) for reasons in record.failed.values())
    would = "would recover" if dry_run else "recovered"
    again = "would fail again" if dry_run else "failed again"
    lines.append(f"{record.selected:,} rows selected: {record.recovered:,} {would}, {failed:,} {again}")
    for stage, reasons in record.failed.items():
        lines += [f"  {rows:>9,}  {stage}: {reason}" for reason, rows in reasons.items()]
    lines += [f"  {rows:>9,}  left as they are: {why}" for why, rows in record.waiting.items()]
    if record.parked:
        lines.append(f"  {record.parked:>9,}  parked: rejected too often already (--most-attempts)")
    lines += _moved(result, dry_run)
    if dry_run:
        lines.append("nothing was changed (--dry-run)")
    elif record.recovered or failed:
        lines.append(f"record: {output}/replays/{record.id}/replay.json")
    return "\n".join(lines)


def _moved(result: "ReplayResult", dry_run: bool) -> list[str]:
    if not result.record.corrected:
        return []
    lines = ["windows that would move:" if dry_run else "windows that moved (rows in OUT/corrections):"]
    for name, windows in result.record.corrected.items():
        lines.append(f"  {name}: {windows:,}")
        correction = result.corrections[name]
        changes = _changes(correction.rows.to_pylist())
        lines += [f"    {change}" for change in changes[:2]]
    return lines


def _changes(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the first groups that change, old → new."""
    groups: dict[str, dict[bool, dict[str, Any]]] = {}
    for row in rows:
        old = row.pop("retraction")
        start, end = row.pop("window_start"), row.pop("window_end")
        texts = {k: v for k, v in row.items() if v is None or isinstance(v, str)}
        numbers = {k: v for k, v in row.items() if k not in texts}
        shown = ", ".join(f"{k} {v}" for k, v in texts.items() if v is not None)
        place = f"{start:%Y-%m-%d %H:%M} to {end:%H:%M}{' ' + shown if shown else ''}"
        groups.setdefault(place, {})[old] = numbers
    changes = []
    for place, sides in groups.items():
        before, after = sides.get(True, {}), sides.get(False, {})
        moved = [
            f"{name} {_number(before.get(name))} → {_number(value)}"
            for name, value in after.items()
            if value != before.get(name)
        ]
        if moved:
            changes.append(f"{place}: {', '.join(moved)}")
    return changes


def _number(value: Any) -> str:
    if value is None:
        return "nothing"
    return (
        f"{value:,.2f}"
        if isinstance(value, float)
        else f"{value.normalize():f}"
        if hasattr(value, "normalize")
        else f"{value:,}"
    )
