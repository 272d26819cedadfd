"""Writing a simulation to a file or stream, plain, gzip or zstd by the file's suffix."""

import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from headrace.schemas.errors import ConfigError
from headrace.simulator.simulation import Simulation
from headrace.simulator.summary import SimulationSummary


def write_events(
    simulation: Simulation, output: str | os.PathLike[str], *, live: bool = False
) -> SimulationSummary:
    """Writes all lines and returns the summary.

    A file appears under its name only when it is complete, replacing an older one; with ``live`` it is written in place and flushed
    after each chunk, for readers that follow it. Compressed files hold no name and no time: their bytes depend on the lines (and on
    the version of the compression library) alone.

    Args:
        output: a file, compressed if it ends in ``.gz`` or ``.zst``; ``-`` is standard output, plain.

    Raises:
        ConfigError: the file can't be written; the message says why.
    """
    with open_output(output, live=live) as file:
        for chunk in simulation:
            file.write(chunk)
            if live:
                file.flush()
    return simulation.summary


@contextmanager
def open_output(output: str | os.PathLike[str], *, live: bool = False) -> Iterator[BinaryIO]:
    """Opens what :func:`write_events` writes to."""
    if str(output) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    in_place = live or (path.exists() and not path.is_file())
    target = path if in_place else path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(target, "wb") as raw, _compressed(raw, path.suffix) as file:
            yield cast(BinaryIO, file)
        if not in_place:
            os.replace(target, path)
    except OSError as error:
        raise ConfigError(
            f"output {path} can't be written: {error.strerror or error}; choose another --output"
        ) from error
    finally:
        if not in_place:
            target.unlink(missing_ok=True)


@contextmanager
def _compressed(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as file:
            yield cast(IO[bytes], file)
    elif suffix == ".zst":
        with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as writer:
            yield writer
    else:
        yield raw
