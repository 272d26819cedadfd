"""A job server of the user's: Beam's PortableRunner, with no knowledge of the engine behind it."""

from typing import TYPE_CHECKING

from headrace.runners.profile import Job, Profile, refuse_environment

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """A job server elsewhere, and workers that may be elsewhere too."""
    from apache_beam.options.pipeline_options import PortableOptions

    if not options.view_as(PortableOptions).job_endpoint:
        return "it needs the address of a job server; add --job_endpoint=HOST:PORT"
    return refuse_environment(job, options)


PROFILE = Profile(
    "portable",
    "PortableRunner",
    "batches on a job server of yours (--job_endpoint, --environment_type)",
    settle,
    versions="any job server that takes jobs of Beam 2.77",
    no_stream=(
        "what keeps a stream exact differs from engine to engine, and here the engine is unknown; for Flink use --runner=flink "
        "with the same --job_endpoint, for this machine --runner=prism"
    ),
    ships_package=True,
)
