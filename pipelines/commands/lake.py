"""``headrace lake``: upkeep of a stream's output."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Keep a stream's output small in files.",
    epilog="Example: headrace lake compact out --delete-after-hours 24",
)


@app.callback()
def _lake() -> None:
    """Makes ``compact`` a command of its own although it is the only one."""


@app.command()
def compact(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The stream's output folder.")],
    target_bytes: Annotated[
        int | None, typer.Option(help="About the size of the new files; default 128 MiB.", show_default=False)
    ] = None,
    min_files: Annotated[
        int, typer.Option(help="Partitions with fewer small files are left as they are.")
    ] = 2,
    delete_after_hours: Annotated[
        int | None,
        typer.Option(
            help="Also delete files that the tables have not needed for so many hours: replaced ones, and those that crashes "
            "left. 24 is safe; never less than a reader or a checkpoint may take.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make the small files of every table of an output into larger ones. Rows are unchanged; a stream may go on meanwhile.

    A stream does it by itself every compact_seconds.

    Example: headrace lake compact out
    """
    from headrace.connectors.compact_lake import TARGET_BYTES, compact_lake, remove_orphans, remove_replaced
    from headrace.connectors.stream_output import FILE
    from headrace.pipelines.streaming.upkeep import tables_of
    from headrace.schemas.errors import ConfigError

    if not (output / FILE).is_file():
        raise ConfigError(
            f"{output} is no stream's output (it has no {FILE}); name the OUT of a `headrace run stream`"
        )
    found = {}
    for name in tables_of(output):
        done = compact_lake(output, name, target_bytes=target_bytes or TARGET_BYTES, min_files=min_files)
        deleted = 0
        if delete_after_hours is not None:
            age = timedelta(hours=delete_after_hours)
            deleted = remove_replaced(output, name, older_than=age)
            deleted += len(remove_orphans(output, name, older_than=age))
        found[name] = {"removed": done.removed, "added": done.added, "deleted": deleted}
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found), default=0)
    for name, counts in found.items():
        said = (
            f"{counts['removed']} small files became {counts['added']}" if counts["removed"] else "as it was"
        )
        typer.echo(
            f"{name:<{width}}  {said}" + (f", {counts['deleted']} deleted" if counts["deleted"] else "")
        )
