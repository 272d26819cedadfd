"""What a stream shows when it has ended."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from headrace.pipelines.progress import clock_time

if TYPE_CHECKING:
    from headrace.pipelines.stream import StreamResult


def as_json(result: "StreamResult") -> dict[str, Any]:
    """Returns the summary as plain JSON values."""
    ledger = result.ledger
    counts = (
        {}
        if ledger is None
        else {
            "rows_in": ledger.rows_in,
            "accepted": ledger.accepted,
            "rejected": ledger.rejected,
            "balanced": ledger.balanced,
        }
    )
    return {
        **counts,
        "late": result.late,
        "output": str(result.output),
        "job": result.job,
        "restarts": result.restarts,
        "state": result.state,
        "elapsed_seconds": round(result.elapsed_seconds, 3),
    }


def print_summary(result: "StreamResult", console: Console) -> None:
    """Prints the summary; works on a terminal and into a file."""

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    ledger = result.ledger
    if ledger is None:
        line("[bold]Checked[/]: configuration, options and graph are sound; nothing was started")
        return
    line(
        f"[bold]Ended[/] after {clock_time(result.elapsed_seconds)}; everything that was read is in {escape(str(result.output))}"
    )
    verdict = "[green]balanced[/]" if ledger.balanced else "[bold red]NOT balanced[/]"
    line(f"  rows in    {ledger.rows_in:,}")
    line(f"  accepted   {ledger.accepted:,}")
    line(f"  rejected   {ledger.total_rejected:,}")
    line(f"  ledger     {verdict}, over all jobs that wrote here")
    for stage, reasons in sorted(ledger.rejected.items()):
        for reason, rows in sorted(reasons.items()):
            line(f"    {escape(stage)} / {escape(reason)}: {rows:,}")
    for table, rows in sorted(result.late.items()):
        line(f"  late for {escape(table)}: {rows:,} (in the lake; kept in late/{escape(table)})")
    if result.restarts:
        line(f"  restarts   {result.restarts}")
    line("\nThe same command goes on from here.")
