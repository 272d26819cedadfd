"""Showing what a check found, for people."""

from collections.abc import Sequence
from typing import Protocol

import typer


class Finding(Protocol):
    """One thing that was looked at."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def detail(self) -> str: ...

    @property
    def fix(self) -> str: ...


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints a line for each, and under it how to mend what is not ok."""
    width = max(len(found.name) for found in findings)
    for found in findings:
        typer.echo(f"{found.status:<8} {found.name:<{width}}  {found.detail}")
        if found.fix and found.status != "ok":
            typer.echo(f"{'':<8} {'':<{width}}  fix: {found.fix}")
