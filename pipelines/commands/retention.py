"""``headrace retention``: what is old goes, by a policy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headrace.pipelines.retention.apply_retention import Applied

app = typer.Typer(
    no_args_is_help=True,
    help="Move what is older than a policy allows to a cold place, or delete it.",
    epilog="Example: headrace retention apply --policy policy.yaml --dry-run out warehouse",
)


@app.callback()
def _retention() -> None:
    """Makes ``apply`` a command of its own although it is the only one."""


@app.command(epilog="Example: headrace retention apply --policy policy.yaml lake warehouse")
def apply(
    outputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="OUT…",
            help="Outputs of batches, streams and backfills, and warehouses.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML, JSON or TOML; without it the default ages.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would go.")] = False,
    print_policy: Annotated[bool, typer.Option("--print-policy", help="Print the policy and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Take whole dates that are too old out of every table. Interrupted, the same command goes on; a stream may run meanwhile."""
    from headrace.pipelines.config_file import load_settings
    from headrace.pipelines.retention.apply_retention import apply_retention
    from headrace.pipelines.retention.policy import Policy
    from headrace.pipelines.settings import dump
    from headrace.schemas.errors import ConfigError

    chosen = load_settings(Policy, policy)
    if print_policy:
        typer.echo(dump(chosen))
        return
    if not outputs:
        raise ConfigError("no output is named; name at least one OUT")
    done = apply_retention(chosen, outputs, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "outputs": [_plain(each) for each in done]}))
        return
    for each in done:
        for id_ in each.finished:
            typer.echo(f"{each.output}: finished what {id_} had left")
        for step in each.steps:
            verb = (
                ("would move" if step.cold else "would delete")
                if dry_run
                else ("moved" if step.cold else "deleted")
            )
            span = step.partitions[0] + (f" to {step.partitions[-1]}" if len(step.partitions) > 1 else "")
            typer.echo(
                f"{each.output}: {verb} {step.table} of {span}: {step.rows:,} rows"
                + (f", {step.files:,} files, {step.bytes:,} bytes" if step.files else "")
                + (f" (to {step.cold})" if step.cold else "")
            )
        for place, rows in each.cold_rows.items():
            typer.echo(f"{place}: {rows:,} rows left the cold place")
        for text in each.kept:
            typer.echo(f"{each.output}: kept {text}")
        if not each.steps:
            typer.echo(f"{each.output}: nothing is to go")
        if each.audit_files:
            typer.echo(f"{each.output}: {each.audit_files:,} ledgers, manifests and records copied")
        if each.unlinked:
            typer.echo(f"{each.output}: {each.unlinked:,} files left the disk")


def _plain(applied: "Applied") -> dict[str, Any]:
    return {
        "output": str(applied.output),
        "steps": [
            {
                "table": step.table,
                "kind": step.kind,
                "dates": step.partitions,
                "rows": step.rows,
                "files": step.files,
                "bytes": step.bytes,
                "cold": step.cold,
            }
            for step in applied.steps
        ],
        "kept": applied.kept,
        "finished": applied.finished,
        "cold_rows": applied.cold_rows,
        "audit_files": applied.audit_files,
        "unlinked": applied.unlinked,
    }
