"""Prism: Beam's local runner for streams and batches, a Go program on this machine.

What it does not do: a bundle that fails is not tried again, the job fails, and its state is in memory only. A restart of the
command goes on from what the lake holds. Prism may process a batch twice when it splits a stage that has timers
(https://github.com/apache/beam/issues/35771), so the profile always switches that off.
"""

from typing import TYPE_CHECKING

from headrace.runners.prism_binary import describe_search, find_prism
from headrace.runners.profile import Job, Profile, environment_of, refuse_environment

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

NO_SPLIT = "prism_disable_sdf_split"
_CONTRARY = {
    "prism_enable_sdf_split": "would let Prism process rows twice when it splits a stage",
    "prism_disable_rtc": "stops the clock that a stream is read by",
}
"""Experiments that are refused, and why."""

JOB_SECONDS = 365 * 86_400
"""Beam ends its look at a Prism job after ``--job_server_timeout`` seconds (default 300), takes it for
failed and stops the workers."""


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """Finds Prism and switches splitting off."""
    from apache_beam.options.pipeline_options import (
        DebugOptions,
        PortableOptions,
        PrismRunnerOptions,
        StandardOptions,
    )

    from headrace.runners.declared_options import HeadraceOptions

    portable = options.view_as(PortableOptions)
    if not environment_of(options):
        portable.environment_type = "LOOPBACK"
    reason = refuse_environment(job, options)
    if reason:
        return reason
    debug = options.view_as(DebugOptions)
    streaming = options.view_as(StandardOptions).streaming
    for experiment in debug.experiments or []:
        name, equals, _ = experiment.partition("=")
        if name == NO_SPLIT and equals:
            return f"--experiments={experiment}: Prism knows {NO_SPLIT} without a value only; leave it out, it is always set"
        if name in _CONTRARY and (streaming or name != "prism_disable_rtc"):
            return f"--experiments={experiment} {_CONTRARY[name]}; leave it out"
    debug.add_experiment(NO_SPLIT)
    portable.job_server_timeout = max(portable.job_server_timeout, JOB_SECONDS)
    if portable.job_endpoint:
        return None
    prism = options.view_as(PrismRunnerOptions)
    found = find_prism(prism.prism_location)
    if found is not None:
        prism.prism_location = str(found)
        return None
    if prism.prism_location:
        return f"--prism_location={prism.prism_location} is no program on this machine; name one, or leave it out"
    if options.view_as(HeadraceOptions).prism_download:
        return None
    return (
        f"Prism was not found ({describe_search()}); build it: headrace cluster up prism (needs Go, takes some minutes), name a "
        "binary with --prism_location=FILE, or let Beam download its release with --prism-download"
    )


PROFILE = Profile(
    "prism",
    "PrismRunner",
    "streams and batches on this machine; a failed bundle fails the job, a restart goes on from the lake",
    settle,
    versions="Prism 2.77 with Beam 2.77",
    ships_package=True,
    default_environment="LOOPBACK",
)
