"""Google Cloud Dataflow: jobs are built and checked here; running them has to wait for a lake writer for object stores.

Beam switches Streaming Engine and Runner v2 on by itself for Python streams; the profile refuses what would switch them off again,
and the at-least-once mode, in which state may see an element twice.
"""

from typing import TYPE_CHECKING

from headrace.runners.profile import Job, Profile, environment_of, machine_paths

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_WEAKER = {
    "streaming_mode_at_least_once": "may deliver an element twice, so that the ledger would not balance",
    "disable_runner_v2": "is refused by Beam 2.77",
    "disable_portable_runner": "is refused by Beam 2.77",
    "disable_streaming_engine": "keeps state on the workers' disks, which Python streams do not support",
}

NOT_YET = (
    "this version writes the lake to paths only, and Dataflow's workers share no file system with this machine, so a job "
    "could run but its output would be lost with its workers"
)


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """Requires what a job needs, and lets it be built: ``--dry_run=true``, or ``--template_location`` with remote paths only."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions

    missing = missing_options(options)
    if missing:
        return f"it needs {', '.join(missing)}"
    if environment_of(options) not in ("", "DOCKER"):
        return f"--environment_type={environment_of(options)} does not exist there, workers are containers; leave it out"
    weaker = _weaker(options)
    if weaker:
        return weaker
    if options.view_as(TestOptions).dry_run:
        return None
    advice = "build and check the job with --dry-run, or use --runner=flink or --runner=prism"
    local = machine_paths(job)
    if local:
        return f"{NOT_YET}. Paths of this machine: {local}; {advice}"
    if not options.view_as(GoogleCloudOptions).template_location:
        return f"{NOT_YET}; {advice}, or write a template with --template_location=gs://BUCKET/PATH"
    return None


def missing_options(options: "PipelineOptions") -> list[str]:
    """Returns the options that Dataflow needs and that are missing or wrong, each with an example."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    cloud = options.view_as(GoogleCloudOptions)
    missing = []
    if not cloud.project:
        missing.append("--project=PROJECT")
    if not cloud.region:
        missing.append("--region=REGION (for example europe-west1)")
    for name in ("temp_location", "staging_location"):
        value = getattr(cloud, name)
        if value is None and name == "staging_location":
            continue  # Beam takes temp_location for it.
        if not (value or "").startswith("gs://"):
            found = f", not {value}" if value else ""
            missing.append(f"--{name}=gs://BUCKET/PATH{found}")
    return missing


def _weaker(options: "PipelineOptions") -> str | None:
    from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions

    given = [
        *(options.view_as(DebugOptions).experiments or []),
        *(options.view_as(GoogleCloudOptions).dataflow_service_options or []),
    ]
    for name in given:
        if name in _WEAKER:
            return f"{name} {_WEAKER[name]}; leave it out"
    return None


PROFILE = Profile(
    "dataflow",
    "DataflowRunner",
    "streams on Google Cloud: build and check a job (--dry-run, --template_location); running is refused yet",
    settle,
    versions="Beam 2.77, Runner v2, Streaming Engine; checked without credentials only",
    no_batch=f"{NOT_YET}; use --runner=direct on a machine that sees the data",
    ships_package=True,
    retries_bundles=True,
)
