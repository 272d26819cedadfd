"""One definition as the settings of a batch and of a stream."""

import dataclasses
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from headrace.pipelines.config import BatchConfig
from headrace.pipelines.config_file import load_settings
from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.settings import as_dict
from headrace.pipelines.stream_config import StreamConfig
from headrace.schemas.errors import ConfigError

NEVER_IDLE_SECONDS = 7 * 86_400
LEAST_DEDUPE_SECONDS = 86_400
LEAST_POLL_ROWS = 200
POLLS_A_DELIVERY = 4
_SHARED = [field.name for field in dataclasses.fields(EventSettings)]


def load_definition(
    path: str | os.PathLike[str] | None, overrides: Mapping[str, object] | None = None
) -> tuple[BatchConfig, StreamConfig]:
    """Reads the configuration of a batch run or of a stream, and returns it as both.

    What only one of the two has keeps its default in the other.

    Args:
        overrides: settings of a batch run that options give; a value of None is no override.

    Raises:
        ConfigError: the file is neither; an impossible value; a stream whose windows no batch can equal.
    """
    shared = {name: value for name, value in (overrides or {}).items() if name in _SHARED}
    try:
        batch = load_settings(BatchConfig, path, overrides)
        stream = StreamConfig(**{name: getattr(batch, name) for name in _SHARED})
    except ConfigError as error:
        try:
            stream = load_settings(StreamConfig, path, shared)
        except ConfigError as other:
            foreign = "unknown setting" in str(error) and "unknown setting" not in str(other)
            raise (other if foreign else error) from None
        both = as_dict(stream)
        batch = load_settings(
            BatchConfig, None, {**{name: both[name] for name in _SHARED}, **_given(overrides)}
        )
    if getattr(stream, "accumulation", "accumulating") == "discarding":
        raise ConfigError(
            "accumulation is 'discarding': no row of a window table has a whole window then, so there is nothing to compare with a "
            "batch; prove the definition with 'accumulating', which is the same but for that"
        )
    return batch, stream


def _given(overrides: Mapping[str, object] | None) -> dict[str, object]:
    return {name: value for name, value in (overrides or {}).items() if value is not None}


def proof_stream(
    config: StreamConfig,
    *,
    incoming: Path,
    output: Path,
    now: datetime,
    format: str,
    mapped: bool,
    delivery_rows: int,
) -> StreamConfig:
    """Returns the settings under which the stream is run.

    Everything that decides which rows come out is as configured, but for two things that depend on the time that the proof
    takes: no partition is idle, and no id is forgotten. Sinks get nothing. Polls, commits and early firings come often, so that
    windows fire many times.

    Args:
        incoming: the directory that is read.
        now: ingest time of all records.
        format: ``jsonl`` or ``weblog``.
        mapped: the records are mapped already.
        delivery_rows: about how many records a delivery has.
    """
    time = now.isoformat().replace("+00:00", "Z")
    changes: dict[str, Any] = {
        "source": f"dir:{quote(str(incoming))}?format={format}&ingest_time={time}",
        "output": str(output),
        "format": "weblog" if format == "weblog" else "auto",
        "mapping": {} if mapped else config.mapping,
        "sink": [],
        "quarantine_sink": None,
        "until": None,
        "max_events": None,
        "idle_seconds": NEVER_IDLE_SECONDS,
        "dedupe_seconds": max(config.dedupe_seconds, LEAST_DEDUPE_SECONDS),
        "early_seconds": min(config.early_seconds, 1),
        "poll_rows": min(config.poll_rows, max(delivery_rows // POLLS_A_DELIVERY, LEAST_POLL_ROWS)),
        "poll_seconds": min(config.poll_seconds, 0.1),
        "commit_seconds": min(config.commit_seconds, 0.5),
    }
    return dataclasses.replace(config, **changes)
