"""A runner as headrace uses it: what it is for, what it sets, and what it refuses.

A profile knows its runner's truths. It fills in the options without which the runner gives wrong results, and refuses a job that
the runner would run wrongly, with the reason and the fix. Each runner's file holds its own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "DOCKER", "PROCESS")
"""Where a runner may start Python workers: in the launcher, in a worker pool, in containers, as processes of its own."""

_REMOTE_SCHEME = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")


class Job(Protocol):
    """What a profile asks of a pipeline's configuration."""

    @property
    def shared_paths(self) -> bool:
        """True if the user says that every path names the same file on all workers."""
        ...

    def local_paths(self) -> Mapping[str, str]:
        """Returns the paths that workers must reach, by the setting that names them; ``output`` is among them."""
        ...


Settle = Callable[[Job, "PipelineOptions"], str | None]
"""Completes the options. Returns why the job can't run so, and the fix; None if it can. ``streaming`` is already set in them."""


@dataclass(frozen=True)
class Profile:
    """One runner as headrace uses it."""

    name: str
    """The value of ``--runner``."""
    beam_runner: str
    """Beam's class name; also accepted as ``--runner``."""
    about: str
    """One line for people."""
    settle: Settle
    versions: str
    """The versions that its tests ran with."""
    no_stream: str = ""
    """Why it can't run streams, and the fix; empty if it can."""
    no_batch: str = ""
    """Why it can't run batches, and the fix; empty if it can."""
    aliases: tuple[str, ...] = ()
    ships_package: bool = False
    """True if workers get headrace from the launcher (``--setup_file``)."""
    retries_bundles: bool = False
    """True if it tries a failed bundle again from the state before it, and has no checkpoints that can be asked for: what a bundle
    publishes has to wait until the runner says that the bundle is final."""
    default_environment: str = ""
    """Where workers run if no ``--environment_type`` says so; empty: it must be said, or the runner has no choice."""


def environment_of(options: "PipelineOptions") -> str:
    """Returns ``--environment_type`` in capitals; empty if it isn't given."""
    from apache_beam.options.pipeline_options import PortableOptions

    return (options.view_as(PortableOptions).environment_type or "").upper()


def refuse_environment(job: Job, options: "PipelineOptions") -> str | None:
    """Says if it is unknown where workers run, or if paths of this machine lead nowhere there."""
    kind = environment_of(options)
    if kind not in ENVIRONMENTS:
        found = f"unknown --environment_type={kind}" if kind else "no --environment_type"
        return f"{found}; say where workers run: {', '.join(ENVIRONMENTS)} (LOOPBACK: in this process)"
    if kind == "LOOPBACK" or job.shared_paths:
        return None
    local = machine_paths(job)
    if not local:
        return None
    return (
        f"its workers ({kind}) may be on other machines, where these paths of this machine lead nowhere or to other files: "
        f"{local}. Put them on a file system that every worker mounts at the same path and add --shared-paths, or "
        "use --environment_type=LOOPBACK or --runner=direct"
    )


def machine_paths(job: Job) -> str:
    """Returns the settings whose paths are of this machine, with them; empty if there are none."""
    paths = job.local_paths().items()
    return ", ".join(f"{name} {path}" for name, path in paths if not _REMOTE_SCHEME.match(path))
