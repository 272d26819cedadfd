"""All runners that ``--runner`` knows."""

from typing import TYPE_CHECKING

from headrace.runners import dataflow, direct, flink, portable, prism, spark
from headrace.runners.profile import Job, Profile
from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["PROFILES", "Job", "Profile", "find_profile", "refuse_any"]

PROFILES: tuple[Profile, ...] = (
    direct.PROFILE,
    portable.PROFILE,
    prism.PROFILE,
    flink.PROFILE,
    dataflow.PROFILE,
    spark.PROFILE,
)


def refuse_any(profile: Profile, options: "PipelineOptions") -> str | None:
    """Reasons that hold on every runner, or on all but one."""
    from apache_beam.options.pipeline_options import PortableOptions, StandardOptions, TestOptions

    from headrace.runners.declared_options import HeadraceOptions, given_flink_options

    streaming = options.view_as(StandardOptions).streaming
    if streaming and profile.no_stream:
        return f"it can't run streams: {profile.no_stream}"
    if not streaming and profile.no_batch:
        return f"it can't run batches: {profile.no_batch}"
    if options.view_as(PortableOptions).output_executable_path:
        return (
            "--output_executable_path only writes a jar, but a run has to commit its files and check its ledger "
            "beside the job; leave it out"
        )
    if options.view_as(TestOptions).dry_run and not (streaming and profile.name == "dataflow"):
        return "--dry_run is for streams on Dataflow only; leave it out"
    flink_options = given_flink_options(options)
    if flink_options and profile.name not in ("flink", "portable"):
        return f"--{next(iter(flink_options))} is an option of Flink's job server and has no effect here; leave it out"
    own = options.view_as(HeadraceOptions)
    if own.flink_rest and not (streaming and profile.name == "flink"):
        return "--flink-rest is for streams on Flink only; leave it out"
    if own.prism_download and profile.name != "prism":
        return "--prism-download is for --runner=prism only; leave it out"
    return None


def find_profile(runner: str) -> Profile:
    """Returns the profile that a name or Beam's class name stands for, in any case.

    Raises:
        ConfigError: unknown runner; the message names the nearest known one.
    """
    names = {
        name.lower(): profile
        for profile in PROFILES
        for name in (profile.name, profile.beam_runner, *profile.aliases)
    }
    found = names.get(runner.lower())
    if found is None:
        raise ConfigError(
            f"--runner={runner} is unknown; {suggest(runner.lower(), [p.name for p in PROFILES])}"
        )
    return found
