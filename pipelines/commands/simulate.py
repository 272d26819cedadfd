"""``headrace simulate``: simulated event traffic to a file or to standard output."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headrace.schemas.errors import ConfigError
from headrace.simulator.durations import parse_duration
from headrace.simulator.output import write_events
from headrace.simulator.simulate import DEFAULT_FAULT_RATE, DEFAULT_START, JSON_FAMILIES, default_span
from headrace.simulator.simulate import simulate as make_simulation
from headrace.simulator.traffic import EFFECTS

_START = DEFAULT_START.isoformat().replace("+00:00", "Z")


def simulate(
    events: Annotated[int, typer.Option(help="Lines to write.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Any integer; the same seed gives the same bytes.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Mean events per second of wall time, for live trials. Default: as fast as possible."
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="Earliest event time, ISO 8601; now: with a rate the events happen as they are written, without one the "
            "last one happens now."
        ),
    ] = _START,
    span: Annotated[
        str | None,
        typer.Option(
            help="Event time from first to last event, e.g. 90m. Default: events / rate; without a rate a minute for "
            "each 16,700 events, from 1h to 23h."
        ),
    ] = None,
    anomaly: Annotated[
        list[str] | None,
        typer.Option(
            help=f"KIND@T or KIND@T/LENGTH, repeatable. KIND: {', '.join(EFFECTS)}. T: ISO time, or +30m after the start. "
            "LENGTH: 5m by default."
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            help="File, compressed if it ends in .gz or .zst; - is standard output; kafka://HOST:PORT/TOPIC a topic, which is "
            "made if it is missing."
        ),
    ] = "-",
    families: Annotated[
        str,
        typer.Option(help="Event families, comma-separated; weblog (access-log lines) only on its own."),
    ] = ",".join(JSON_FAMILIES),
    fault_rate: Annotated[
        float,
        typer.Option(
            help="Share of lines with an injected fault, 0 to 1: malformed, invalid, stale, duplicate, PII, …"
        ),
    ] = DEFAULT_FAULT_RATE,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="The same as --fault-rate 0.")] = False,
    truth: Annotated[
        str | None,
        typer.Option(help="Write the exact counts of what was injected to this JSON file."),
    ] = None,
) -> None:
    """Write simulated event traffic of a web shop: users, sessions, seasons, all event families, injected faults.

    A summary with the reference time for `headrace run batch --now` goes to standard error.

    Example:

        headrace simulate --events 100000 --rate 1000 --start now --output kafka://localhost:9092/events

        headrace simulate --events 200000 --seed 7 --anomaly traffic_spike@+30m --output events.jsonl.gz --truth truth.json
    """
    simulation = make_simulation(
        events,
        seed,
        rate=rate,
        start=_now(events, rate, span) if start == "now" else start,
        span=span,
        anomalies=anomaly or (),
        families=[name.strip() for name in families.split(",")],
        fault_rate=0.0 if no_faults else fault_rate,
    )
    if truth is not None and not Path(truth).absolute().parent.is_dir():
        raise ConfigError(
            f"--truth {truth}: folder {Path(truth).absolute().parent} does not exist; create it first"
        )
    try:
        if output.startswith("kafka://"):
            from headrace.connectors.produce_lines import produce_lines

            produce_lines(output, simulation)
            summary = simulation.summary
        else:
            summary = write_events(simulation, output, live=rate is not None)
    except BrokenPipeError:
        # The reader has seen enough (`| head`); keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if truth is not None:
        try:
            Path(truth).write_text(summary.to_json(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--truth {truth} can't be written: {error.strerror}; choose another file"
            ) from error
    typer.echo(str(summary), err=True)


def _now(events: int, rate: float | None, span: str | None) -> datetime:
    """Returns the start for which the last event, or with a rate the first, happens now."""
    now = datetime.now(UTC)
    if rate:
        return now
    return now - (parse_duration(span, "span") if span else default_span(events, None))
