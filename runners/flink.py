"""Flink: what a stream needs so that none of its rows is lost, and what it must not have.

By default Beam's Flink runner ends a bundle that is open at a checkpoint inside the snapshot and keeps the output until more input
comes. A job whose first checkpoint meets its first bundle then stalls for ever while it looks healthy, and rows of chained stateful
steps arrive late (measured: 0 of 4 runs exact at an interval of 1 s; 70 of 70 with the options below). So a stream always gets:

=============================================  =======  ==============================================================
option                                         value    why
=============================================  =======  ==============================================================
finish_bundle_before_checkpointing             true     see above
max_bundle_time_mills                          200      how long rows may wait in a bundle; at most 1000
checkpointing_interval                         1000     the lake is committed after each checkpoint
min_pause_between_checkpoints                  500      a checkpoint right after another may never end
checkpoint_timeout_millis                      60000    one that never ends restarts the job, and so is mended
externalized_checkpoints_enabled               true     a new job can start from the last checkpoint
retain_externalized_checkpoints_on_cancellation true    … also after a cancellation
max_parallelism                                128      key groups; a savepoint only fits a job with as many
=============================================  =======  ==============================================================

Stronger values may be given, weaker ones are refused. State backend, checkpoint folder and restart strategy belong to the cluster's
configuration; ``headrace runners check flink`` looks at it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.runners.local_cluster import find_flink
from headrace.runners.profile import Job, Profile, refuse_environment
from headrace.schemas.errors import ConfigError, UntrustedRunError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from headrace.runners.flink_rest import FlinkRest

STREAM_OPTIONS: Mapping[str, bool | int] = {
    "finish_bundle_before_checkpointing": True,
    "max_bundle_time_mills": 200,
    "checkpointing_interval": 1000,
    "min_pause_between_checkpoints": 500,
    "checkpoint_timeout_millis": 60_000,
    "externalized_checkpoints_enabled": True,
    "retain_externalized_checkpoints_on_cancellation": True,
}
"""What a stream gets where the user gives nothing."""

MAX_PARALLELISM = 128

_REASONS = {
    "finish_bundle_before_checkpointing": "without it a stream stalls or loses rows at its checkpoints",
    "externalized_checkpoints_enabled": "without it the state is gone with the job",
    "retain_externalized_checkpoints_on_cancellation": "without it the state is gone with a cancelled job",
}
"""Why an option has to be true."""

_RANGES: Mapping[str, tuple[int, int | None, str]] = {
    "max_bundle_time_mills": (1, 1000, "rows would wait longer than that in open bundles"),
    "checkpointing_interval": (1000, None, "with more frequent checkpoints some never ended"),
    "min_pause_between_checkpoints": (500, None, "a checkpoint right after another may never end"),
    "checkpoint_timeout_millis": (
        10_000,
        600_000,
        "a shorter one gives up sound checkpoints, a longer one leaves a stuck one unnoticed",
    ),
}
"""Smallest and largest value, and why."""

_CLUSTER_CONFIGURATION = (
    "the cluster's configuration decides on that, and as a pipeline option it fails on a cluster; set state.backend.type and "
    "state.checkpoints.dir there"
)
_NEVER = {
    "state_backend": _CLUSTER_CONFIGURATION,
    "state_backend_storage_path": _CLUSTER_CONFIGURATION,
    "state_backend_factory": _CLUSTER_CONFIGURATION,
}
"""Refused whatever the value."""

_UNALIGNED = (
    "no run has shown that it keeps a stream exact together with --finish_bundle_before_checkpointing"
)
_STREAM_ONLY_VALUE: Mapping[str, tuple[object, str]] = {
    "checkpointing_mode": ("EXACTLY_ONCE", "any other mode counts rows twice after a restart"),
    "num_concurrent_checkpoints": (1, "the pause between checkpoints holds only if they come one by one"),
    "unaligned_checkpoint_enabled": (False, _UNALIGNED),
    "force_unaligned_checkpoint_enabled": (False, _UNALIGNED),
    "shutdown_sources_after_idle_ms": (
        -1,
        "no checkpoint completes once a source is shut down, so nothing more would be committed",
    ),
    "allow_non_restored_state": (
        False,
        "state that finds no step would be dropped without a word: duplicates would pass and windows be wrong",
    ),
    "attached_mode": (True, "the launcher has to stay with the job to watch and to drain it"),
}
"""The one value that a stream may have, and why."""


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """Takes addresses that are not given from a cluster of ``headrace cluster up flink``; sets what a stream needs."""
    from apache_beam.options.pipeline_options import StandardOptions

    from headrace.runners.declared_options import given_flink_options

    streaming = options.view_as(StandardOptions).streaming
    reason = _settle_server(options)
    if reason is None:
        reason = refuse_environment(job, options)
    if reason is None:
        reason = _refuse_never(given_flink_options(options))
    if reason is not None:
        return reason
    return _settle_stream(job, options) if streaming else _refuse_batch(given_flink_options(options))


def rest_address(options: "PipelineOptions") -> str:
    """Returns the address of Flink's REST service that a stream on Flink was given or found; empty if none."""
    from headrace.runners.declared_options import HeadraceOptions

    return options.view_as(HeadraceOptions).flink_rest or ""


def require_effect(rest: "FlinkRest", job: str, options: "PipelineOptions") -> None:
    """Asks Flink whether a stream runs with the options that it was sent.

    Args:
        job: Flink's id of the job.
        options: as the profile left them.

    Raises:
        UntrustedRunError: an option has no effect; names all of them. The job should be cancelled.
        FlinkError: Flink can't be asked.
    """
    from headrace.runners.declared_options import given_flink_options

    given = given_flink_options(options)
    settings = rest.checkpoint_settings(job)
    there = rest.job_options(job)
    wrong = []
    for name, found in (
        ("checkpointing_interval", settings.interval_ms),
        ("min_pause_between_checkpoints", settings.min_pause_ms),
        ("checkpoint_timeout_millis", settings.timeout_ms),
        ("externalized_checkpoints_enabled", settings.retained),
        ("retain_externalized_checkpoints_on_cancellation", settings.retained),
    ):
        if found != given[name]:
            wrong.append(f"{name} is {_text(found)}, not {_text(given[name])}")
    if settings.mode != "exactly_once":
        wrong.append(f"checkpointing_mode is {settings.mode}, not exactly_once")
    for name, java in (
        ("finish_bundle_before_checkpointing", "finishBundleBeforeCheckpointing"),
        ("max_bundle_time_mills", "maxBundleTimeMills"),
    ):
        if there.get(java) != _text(given[name]):
            wrong.append(f"{name} is {there.get(java, 'not set')}, not {_text(given[name])}")
    if wrong:
        raise UntrustedRunError(
            f"Flink runs the job without options that keep it exact ({'; '.join(wrong)}); use a job server of Beam 2.60 or "
            "later made for Flink, and start the stream again"
        )


def _settle_server(options: "PipelineOptions") -> str | None:
    """Finds the job server and, for a stream, Flink's REST service."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions, StandardOptions

    from headrace.runners.declared_options import HeadraceOptions

    portable = options.view_as(PortableOptions)
    flink = options.view_as(FlinkRunnerOptions)
    own = options.view_as(HeadraceOptions)
    cluster = None if portable.job_endpoint or flink.flink_job_server_jar else find_flink()
    if flink.flink_submit_uber_jar:
        return "--flink_submit_uber_jar submits past a job server, which no run has covered; leave it out and add --job_endpoint"
    if portable.job_endpoint == "embed":
        return "--job_endpoint=embed runs in this process and not on Flink; use --runner=direct, or name a job server"
    if flink.flink_job_server_jar:
        reason = _refuse_jar(flink.flink_job_server_jar, flink.flink_master)
        if reason:
            return reason
    elif not portable.job_endpoint:
        if cluster is None:
            return (
                "it needs a job server; add --job_endpoint=HOST:PORT of one of Beam's for Flink, let one be started with "
                "--flink_job_server_jar=FILE --flink_master=HOST:PORT, or start all on this machine: headrace cluster up flink"
            )
        portable.job_endpoint = cluster.job_endpoint
    if not options.view_as(StandardOptions).streaming:
        return None
    if not own.flink_rest and _names_host(flink.flink_master):
        own.flink_rest = flink.flink_master
    if not own.flink_rest and cluster is not None:
        own.flink_rest = cluster.rest
    if not own.flink_rest:
        return (
            "a stream asks Flink which checkpoints are complete before it commits to the lake; add --flink-rest=http://HOST:PORT "
            "(the address of Flink's web page, reachable from the workers)"
        )
    if "://" not in own.flink_rest:
        own.flink_rest = f"http://{own.flink_rest}"
    from headrace.runners.flink_rest import FlinkRest

    try:
        FlinkRest(own.flink_rest)
    except ConfigError as error:
        return str(error)
    return None


def _refuse_jar(jar: str, master: str) -> str | None:
    if not Path(jar).is_file():
        return f"--flink_job_server_jar={jar} is no file on this machine; nothing is downloaded here"
    if not _names_host(master):
        return (
            f"--flink_master={master} would run an engine inside the job server; name a cluster's HOST:PORT"
        )
    return None


def _names_host(master: str) -> bool:
    return bool(master) and not master.startswith("[")


def _refuse_never(given: Mapping[str, Any]) -> str | None:
    for name, reason in _NEVER.items():
        if name in given:
            return f"--{name}: {reason}"
    return None


def _refuse_batch(given: Mapping[str, Any]) -> str | None:
    from headrace.runners.declared_options import FLINK_OPTIONS

    for option in FLINK_OPTIONS:
        if option.streaming_only and option.name in given:
            return f"--{option.name} has no effect on a batch; leave it out"
    return None


def _settle_stream(job: Job, options: "PipelineOptions") -> str | None:
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions

    from headrace.runners.declared_options import FlinkOptions, given_flink_options

    own = options.view_as(FlinkOptions)
    for name, value in STREAM_OPTIONS.items():
        if getattr(own, name) is None:
            setattr(own, name, value)
    parallel = options.view_as(FlinkRunnerOptions)
    if parallel.max_parallelism == -1:
        parallel.max_parallelism = MAX_PARALLELISM
    cloud = options.view_as(GoogleCloudOptions)
    if not cloud.job_name:
        cloud.job_name = job_name(job)
    return _refuse_weak(given_flink_options(options), parallel.parallelism, parallel.max_parallelism)


def job_name(job: Job) -> str:
    """Returns the name of a stream's job: the same for the same output, so that a second one beside it is noticed."""
    output = job.local_paths().get("output", "")
    if "://" not in output:
        output = str(Path(output).absolute())
    return f"headrace-{hashlib.sha256(output.encode()).hexdigest()[:12]}"


def _refuse_weak(given: Mapping[str, Any], parallelism: int, max_parallelism: int) -> str | None:
    """Says which option of a stream is weaker than it may be."""
    for name, reason in _REASONS.items():
        if given[name] is not True:
            return f"--{name}=false: {reason}; leave it out"
    for name, (least, most, reason) in _RANGES.items():
        if given[name] < least or (most is not None and given[name] > most):
            limit = f"{least} at least" if most is None else f"{least} to {most}"
            return f"--{name}={given[name]}: {reason}; give {limit} (milliseconds), or leave it out for {STREAM_OPTIONS[name]}"
    for name, (value, reason) in _STREAM_ONLY_VALUE.items():
        if name in given and given[name] != value:
            return f"--{name}={_text(given[name])}: {reason}; leave it out"
    if given.get("number_of_execution_retries") == 0:
        return "--number_of_execution_retries=0 ends the job at its first failure; leave it out for the cluster's restart strategy"
    if given["checkpoint_timeout_millis"] < given["checkpointing_interval"]:
        return (
            f"--checkpoint_timeout_millis={given['checkpoint_timeout_millis']} is shorter than --checkpointing_interval="
            f"{given['checkpointing_interval']}; give a longer one"
        )
    if not 1 <= max_parallelism <= 32_768:
        return f"--max_parallelism={max_parallelism} is out of range; give 1 to 32768"
    if parallelism > max_parallelism:
        return (
            f"--parallelism={parallelism} is more than --max_parallelism={max_parallelism}; give a larger --max_parallelism (no "
            "savepoint made with another fits)"
        )
    return None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


PROFILE = Profile(
    "flink",
    "FlinkRunner",
    "streams and batches on a Flink cluster, through its job server (--job_endpoint, --flink-rest)",
    settle,
    versions="Flink 1.19 with Beam's job server 2.70 (1.17 to 1.20 with the job server made for them)",
    ships_package=True,
)
