"""``headrace report``: a page about an output."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The output of a batch or a stream.")],
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Where to write it; default: OUT/report.html."),
    ] = None,
) -> None:
    """Write one HTML page about an output: traffic, revenue, funnel, sessions, geography, quality, ledger.

    The page has its plots inside, so it can be mailed and opened without a network. It holds sums only: no event, no user.

    Example: headrace report out
    """
    from headrace.pipelines.report.report import write_report

    target = output / "report.html" if page is None else page
    size = write_report(output, target)
    typer.echo(f"{target}: {size / 1000:,.0f} kB")
