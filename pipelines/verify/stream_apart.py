"""A stream in a process of its own, as ``headrace run stream`` runs it."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.connectors.stream_ledger import StreamTotals, read_stream_ledger
from headrace.pipelines.exits import DONE
from headrace.pipelines.settings import dump
from headrace.pipelines.stream_config import StreamConfig
from headrace.runners.options import prepare
from headrace.schemas.errors import ConfigError, UntrustedRunError

LOOK_SECONDS = 0.3
END_SECONDS = 60.0
"""How long a stream that is told to end at once may take to end its runner."""
_COMMAND = (sys.executable, "-c", "from headrace.pipelines.cli import main; main()", "run", "stream")
_TAIL = 20


def require_runner(config: StreamConfig, beam_args: Sequence[str]) -> None:
    """Refuses at once what a stream with these options would refuse later.

    Raises:
        ConfigError: a runner that runs no streams or is not there, or options that it does not take.
    """
    prepare(beam_args, config, streaming=True)


def run_stream_apart(
    config: StreamConfig, beam_args: Sequence[str], on_progress: Callable[[StreamTotals], None], *, log: Path
) -> None:
    """Runs a stream until it ends by itself; it must be told to, by its configuration or by ``on_progress``.

    Args:
        config: of the stream.
        beam_args: options of Beam, with ``--runner``.
        on_progress: told what is committed about three times a second. If it raises, the stream is ended at once.
        log: gets what the stream's process writes to standard error.

    Raises:
        ConfigError: the stream refuses its configuration.
        UntrustedRunError: it ended with an error; the end of its log is in the message.
    """
    settings = log.with_suffix(".yaml")
    settings.write_text(dump(config), encoding="utf-8")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*_COMMAND, "--config", str(settings), "--quiet", *beam_args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        while process.poll() is None:
            on_progress(read_stream_ledger(config.output, positions=False))
            time.sleep(LOOK_SECONDS)
    finally:
        _end(process)
    if process.returncode != DONE:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = next((line for line in reversed(lines) if line.startswith("error: ")), "")
        said = told.removeprefix("error: ") or "\n".join(lines[-_TAIL:]) or "it left no message"
        kind = ConfigError if process.returncode == 2 else UntrustedRunError
        raise kind(f"the stream ended with exit code {process.returncode}: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a stream that is still running: the first signal asks it to drain, the second to give up."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
