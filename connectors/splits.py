"""What a plan of inputs consists of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputFile:
    """One file of the input."""

    path: str
    origin: str
    """Its path relative to the input's root, with forward slashes; unique in the plan."""
    format: str
    compression: str
    size_bytes: int
    checksum: str
    """xxh3_128 of the file's bytes, in hex."""


@dataclass(frozen=True)
class Split:
    """A part of one file that one worker reads."""

    index: int
    """Its place in the plan, from 0."""
    path: str
    origin: str
    format: str
    compression: str
    start: int
    """First byte (lines, CSV, Avro) or first row group (Parquet)."""
    end: int
    """Byte or row group after the last."""
    first_record: int
    """Position of the first record that begins in the split: a line number (lines, CSV) or row number, from 1."""
    size_bytes: int
    """Size of the whole file."""


@dataclass(frozen=True)
class Plan:
    """All files and their splits, ordered by origin."""

    files: tuple[InputFile, ...]
    splits: tuple[Split, ...]
