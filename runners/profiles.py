"""What each runner needs from a batch pipeline, and which runners are refused.

``DirectRunner`` is mapped onto ``FnApiRunner``: in Beam 2.77 it first tries Prism and downloads it from GitHub; without a network
it falls back with a line at INFO, so two machines run the same command on two runners.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "DOCKER", "PROCESS")

_REMOTE_SCHEME = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")


class Job(Protocol):
    """What a profile asks of a pipeline's configuration."""

    @property
    def shared_paths(self) -> bool:
        """True if the user says that every path names the same file on all workers."""
        ...

    def local_paths(self) -> Mapping[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        ...


Refuse = Callable[[Job, "PipelineOptions"], str | None]
"""Returns why the job can't run so, and the fix; None if it can."""


@dataclass(frozen=True)
class Profile:
    """One runner as the batch pipeline uses it."""

    name: str
    """The value of ``--runner``."""
    beam_runner: str
    """Beam's class name; also accepted as ``--runner``."""
    about: str
    """One line for people."""
    refuse: Refuse
    aliases: tuple[str, ...] = ()
    ships_package: bool = False
    """True if workers get headrace from the launcher (``--setup_file``)."""


def refuse_any(job: Job, options: "PipelineOptions") -> str | None:
    """Reasons that hold on every runner."""
    from apache_beam.options.pipeline_options import PortableOptions, StandardOptions

    if options.view_as(StandardOptions).streaming:
        return "--streaming does not belong to a batch run; leave it out"
    if options.view_as(PortableOptions).output_executable_path:
        return (
            "--output_executable_path only writes a jar, but a batch run has to commit its files and check its ledger "
            "after the job; leave it out"
        )
    return None


def refuse_direct(job: Job, options: "PipelineOptions") -> str | None:
    """FnApiRunner: one process unless told otherwise; the in-memory mode takes more workers but does not use them."""
    from apache_beam.options.pipeline_options import DirectOptions

    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        return (
            f"--direct_num_workers={direct.direct_num_workers} has no effect in memory, where everything runs in one worker; "
            "add --direct_running_mode=multi_processing"
        )
    return None


def refuse_portable(job: Job, options: "PipelineOptions") -> str | None:
    """PortableRunner: a job server elsewhere, and workers that may be elsewhere too."""
    from apache_beam.options.pipeline_options import PortableOptions

    portable = options.view_as(PortableOptions)
    if not portable.job_endpoint:
        return "it needs the address of a job server; add --job_endpoint=HOST:PORT"
    kind = (portable.environment_type or "").upper()
    if kind not in ENVIRONMENTS:
        found = f"unknown --environment_type={portable.environment_type}" if kind else "no --environment_type"
        return f"{found}; say where workers run: {', '.join(ENVIRONMENTS)} (LOOPBACK: in this process)"
    if kind == "LOOPBACK":
        return None
    local = {name: path for name, path in job.local_paths().items() if not _REMOTE_SCHEME.match(path)}
    if local and not job.shared_paths:
        listed = ", ".join(f"{name} {path}" for name, path in local.items())
        return (
            f"its workers ({kind}) may be on other machines, where these paths of this machine lead nowhere or to other files: "
            f"{listed}. Put them on a file system that every worker mounts at the same path and add --shared-paths, or "
            "use --environment_type=LOOPBACK or --runner=direct"
        )
    return None


def _not_yet(reason: str) -> Refuse:
    def refuse(job: Job, options: "PipelineOptions") -> str | None:
        return reason

    return refuse


PROFILES: tuple[Profile, ...] = (
    Profile(
        "direct",
        "FnApiRunner",
        "in this process; the default",
        refuse_direct,
        aliases=("DirectRunner",),
    ),
    Profile(
        "portable",
        "PortableRunner",
        "a job server of yours, for example Flink's (--job_endpoint, --environment_type)",
        refuse_portable,
        ships_package=True,
    ),
    Profile(
        "prism",
        "PrismRunner",
        "for streaming, later",
        _not_yet(
            "it is kept for streaming, which this version does not have; a batch runs in this process with --runner=direct"
        ),
    ),
    Profile(
        "flink",
        "FlinkRunner",
        "later; a Flink job server works through portable",
        _not_yet(
            "Beam would start a job server from a jar that it downloads, with options that no test of ours covers; start the job "
            "server yourself and use --runner=portable --job_endpoint=HOST:PORT, or --runner=direct"
        ),
    ),
    Profile(
        "dataflow",
        "DataflowRunner",
        "later",
        _not_yet(
            "its workers share no file system with this machine, and this version reads and writes paths only; "
            "use --runner=direct on a machine that sees the data"
        ),
    ),
    Profile(
        "spark",
        "SparkRunner",
        "later",
        _not_yet("no test of ours covers it; use --runner=direct, or a job server with --runner=portable"),
    ),
)
"""All runners that ``--runner`` knows, refused ones included."""


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
