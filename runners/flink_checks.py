"""Looks at a Flink cluster: does it answer, is it a version that headrace knows, and is it set up to keep a stream?"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from headrace.runners.finding import Finding
from headrace.runners.flink import STREAM_OPTIONS, rest_address
from headrace.runners.flink_answers import FlinkError, Overview
from headrace.runners.flink_rest import FlinkRest
from headrace.runners.job_server import check_job_server

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

TESTED = "1.19"
SUPPORTED = ("1.17", "1.18", "1.19", "1.20")
"""A job server is made for one of them; it has to be that of the cluster."""

_ENOUGH_ATTEMPTS = 1000
_LONGEST_CACHE_MS = 1000
_LONGEST_HEARTBEAT_MS = 20_000
_UNITS = {
    "": 1,
    "ms": 1,
    "milli": 1,
    "s": 1000,
    "sec": 1000,
    "second": 1000,
    "m": 60_000,
    "min": 60_000,
    "minute": 60_000,
    "h": 3_600_000,
    "hour": 3_600_000,
}


def look(options: "PipelineOptions", seconds: float) -> Iterator[Finding]:
    """Asks the job server and, where it is known, the cluster."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions, StandardOptions

    streaming = options.view_as(StandardOptions).streaming
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint and endpoint != "embed":
        yield check_job_server(endpoint, seconds, STREAM_OPTIONS if streaming else (), "Flink")
    url = rest_address(options)
    if not url:
        return
    try:
        rest = FlinkRest(url, seconds)
        overview, config = rest.overview(), rest.cluster_config()
    except FlinkError as error:
        yield Finding(
            "flink", "wrong", str(error), "correct --flink-rest; on this machine: headrace cluster up flink"
        )
        return
    yield check_version(overview.version)
    yield check_slots(overview, options.view_as(FlinkRunnerOptions).parallelism)
    yield from check_config(config)


def check_version(found: str) -> Finding:
    """Compares Flink's version with those that Beam's job servers exist for."""
    line = "".join(re.findall(r"^\d+\.\d+", found))
    if line not in SUPPORTED:
        return Finding(
            "flink",
            "wrong",
            f"version {found} is not supported",
            f"use {SUPPORTED[0]} to {SUPPORTED[-1]}, {TESTED} best",
        )
    if line != TESTED:
        return Finding(
            "flink",
            "warning",
            f"version {found}; the tests of headrace ran with {TESTED}",
            f"use a job server that was made for {line}",
        )
    return Finding("flink", "ok", f"version {found}")


def check_slots(overview: Overview, parallelism: int = 1) -> Finding:
    """Compares the free slots with those that a job takes."""
    wanted = max(1, parallelism)
    detail = f"{overview.free_slots} of {overview.slots} free on {overview.task_managers} TaskManagers"
    if overview.free_slots >= wanted:
        return Finding("slots", "ok", detail)
    return Finding(
        "slots",
        "wrong",
        f"{detail}; a job needs {wanted}, and waits until it has them",
        "start a TaskManager, cancel a job, or lower --parallelism",
    )


def check_config(config: Mapping[str, str]) -> Iterator[Finding]:
    """Looks at the cluster's configuration, as its JobManager has it."""
    backend = config.get("state.backend.type") or config.get("state.backend")
    yield _state_backend(backend)
    if backend == "rocksdb":
        yield _merging(config.get("state.backend.rocksdb.compaction.style"))
    yield _checkpoint_folder(config.get("state.checkpoints.dir") or config.get("execution.checkpointing.dir"))
    yield _restarts(config)
    yield _cache(config.get("rest.cache.checkpoint-statistics.timeout") or config.get("web.refresh-interval"))
    yield _heartbeat(config.get("heartbeat.timeout"))


def milliseconds(text: str) -> int | None:
    """Reads a duration as Flink writes it: ``10 s``, ``500 ms``, ``10000`` (milliseconds); None if it is none."""
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text.lower())
    if found is None:
        return None
    unit = found[2] if found[2] in _UNITS else found[2].removesuffix("s")
    return int(found[1]) * _UNITS[unit] if unit in _UNITS else None


def _state_backend(found: str | None) -> Finding:
    name = "state backend"
    if found == "rocksdb":
        return Finding(name, "ok", "rocksdb")
    shown = found or "not set, so hashmap"
    return Finding(
        name,
        "warning",
        f"{shown}: a stream's dedupe state would have to fit in memory and be copied whole at each checkpoint",
        "set state.backend.type: rocksdb and state.backend.incremental: true",
    )


def _merging(found: str | None) -> Finding:
    name, key = "rocksdb merging", "state.backend.rocksdb.compaction.style"
    if found is not None and found.upper() == "UNIVERSAL":
        return Finding(name, "ok", "by size")
    return Finding(
        name,
        "warning",
        f"{found or 'LEVEL'}: all of a stream's dedupe state would be rewritten at every few checkpoints",
        f"set {key}: UNIVERSAL",
    )


def _checkpoint_folder(found: str | None) -> Finding:
    name = "checkpoint folder"
    fix = "set state.checkpoints.dir to a folder that all machines of the cluster see, for example s3://… or file:///shared/…"
    if not found:
        return Finding(
            name,
            "wrong",
            "not set: checkpoints would be kept in the JobManager's memory and die with it",
            fix,
        )
    if found.startswith(("file:", "/")):
        return Finding(name, "ok", f"{found} (has to be the same folder on all machines of the cluster)")
    return Finding(name, "ok", found)


def _restarts(config: Mapping[str, str]) -> Finding:
    name, key = "restart strategy", "restart-strategy.fixed-delay.attempts"
    found = config.get("restart-strategy.type") or config.get("restart-strategy")
    better = "set restart-strategy.type: exponential-delay, which forgets failures that are long ago"
    if not found:
        return Finding(name, "ok", "not set: with checkpoints Flink restarts a job for ever")
    kind = found.lower().replace("_", "").replace("-", "")
    if kind in ("none", "off", "disable"):
        return Finding(name, "wrong", f"{found}: the first failure ends a stream", better)
    if kind in ("fixeddelay",):
        attempts = config.get(key, "1")
        if attempts.isdecimal() and int(attempts) < _ENOUGH_ATTEMPTS:
            return Finding(
                name,
                "warning",
                f"{found} with {attempts} attempts, counted over the whole life of a job: the next failure ends it",
                f"{better}; or raise {key}",
            )
    return Finding(name, "ok", found)


def _cache(found: str | None) -> Finding:
    name, key = "checkpoint news", "rest.cache.checkpoint-statistics.timeout"
    known = milliseconds(found) if found else 3000
    if known is not None and known <= _LONGEST_CACHE_MS:
        return Finding(name, "ok", f"{known} ms old at most")
    return Finding(
        name,
        "warning",
        f"up to {found or '3 s'} old ({key}): the lake is committed that much later",
        f"set {key}: 200 ms (Flink 1.18 and later)",
    )


def _heartbeat(found: str | None) -> Finding:
    name = "heartbeat"
    known = milliseconds(found) if found else 50_000
    if known is not None and known <= _LONGEST_HEARTBEAT_MS:
        return Finding(name, "ok", f"a silent TaskManager is given up after {known / 1000:g} s")
    return Finding(
        name,
        "warning",
        f"a silent TaskManager is given up after {found or '50 s'} only (heartbeat.timeout)",
        "set heartbeat.timeout: 10000 and heartbeat.interval: 2000",
    )
