"""``headrace validate``: a verdict for each document of a file."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headrace.pipelines.commands.schemas import find_schema
from headrace.schemas.documents import Document, read_documents
from headrace.schemas.failures import Failure
from headrace.schemas.validator import RowValidator


class OutputFormat(StrEnum):
    """How verdicts are printed."""

    TEXT = "text"
    JSON = "json"


def validate(
    schema: Annotated[
        str,
        typer.Option(
            "--schema",
            metavar="FILE|NAME[:VERSION]",
            help="a JSON Schema (draft 4, 6, 7, 2019-09 or 2020-12), or one of `headrace schemas list`",
        ),
    ],
    input: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            allow_dash=True,
            help="JSON lines, or one JSON document of any layout; plain, gzip or zstd; - is standard input",
        ),
    ],
    output_format: Annotated[
        OutputFormat,
        typer.Option(
            "--output-format", help="json: one line a document; text: the invalid ones and a summary"
        ),
    ] = OutputFormat.TEXT,
) -> None:
    """Say for each document whether it is valid under a schema, and if not, where and why.

    The exit code is 0 if all are valid, 1 if one is not, 2 if the schema or the input can't be used. A $ref may lead into the
    schema itself or to a file in its folder; nothing is ever fetched from the network.

    Example:  headrace validate --schema commerce --input events.jsonl.gz --output-format json
    """
    validator = RowValidator.from_checked(find_schema(schema))
    show = _show_json if OutputFormat(output_format) is OutputFormat.JSON else _show_text
    count = invalid = 0
    for document in read_documents(input):
        failures = [document.failure] if document.failure else validator.failures(document.value)
        show(document, failures)
        count += 1
        invalid += bool(failures)
    if show is _show_text:
        sys.stdout.write(f"{count} document(s): {count - invalid} valid, {invalid} invalid\n")
    sys.stdout.flush()
    if invalid:
        raise typer.Exit(1)


def _show_json(document: Document, failures: Sequence[Failure]) -> None:
    verdict = {"document": document.number, "valid": not failures, "errors": failures}
    sys.stdout.write(json.dumps(verdict) + "\n")


def _show_text(document: Document, failures: Sequence[Failure]) -> None:
    if failures:
        sys.stdout.write(f"document {document.number} (line {document.line}) is invalid\n")
    for failure in failures:
        place = failure["pointer"] or "(whole document)"
        sys.stdout.write(_printable(f"  {place}: {failure['message']} [{failure['code']}]") + "\n")


def _printable(text: str) -> str:
    """Returns the text with control characters spelt out: names come from the document and must not steer the terminal."""
    return (
        "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        .encode(sys.stdout.encoding or "utf-8", "backslashreplace")
        .decode(sys.stdout.encoding or "utf-8")
    )
