"""From command-line arguments to Beam's pipeline options, with nothing silently ignored.

Beam only logs ``Discarding unparseable args`` for an option that it does not know, so a misspelt option changes nothing. Here it is
refused.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from headrace.runners.profile import Job, Profile, environment_of
from headrace.runners.profiles import find_profile, refuse_any
from headrace.runners.suggest import suggest
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


class Prepared(NamedTuple):
    """A runner that has accepted a job."""

    profile: Profile
    options: "PipelineOptions"
    """Ready for ``beam.Pipeline(options=...)``; holds the runner's class name."""


def prepare(beam_args: Sequence[str], job: Job, streaming: bool = False) -> Prepared:
    """Parses Beam options, asks the runner's profile whether it can run the job, and adds what the runner needs for it.

    The same arguments give the same options, so it may be called again after :func:`with_package`.

    Args:
        beam_args: ``--name=value`` or ``--name value``; ``--runner`` picks the profile, default ``direct``.
        job: the pipeline's configuration.
        streaming: the job never ends by itself; ``--streaming`` is set.

    Raises:
        ConfigError: an unknown option or runner, a value that the option does not take, or a job that the runner would run
            wrongly; the message has the reason and the fix.
    """
    prepared, reason = examine(beam_args, job, streaming)
    if reason:
        raise ConfigError(f"--runner={prepared.profile.name}: {reason}")
    return prepared


def examine(beam_args: Sequence[str], job: Job, streaming: bool = False) -> tuple[Prepared, str | None]:
    """Does what :func:`prepare` does, but returns the reason of a runner that refuses, with the options as far as they came.

    Raises:
        ConfigError: an unknown option or runner, or a value that the option does not take.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TestOptions

    check_known(beam_args)
    options = PipelineOptions(list(beam_args))
    standard = options.view_as(StandardOptions)
    profile = find_profile(standard.runner or "direct")
    reason = None
    if standard.streaming and not streaming:
        reason = "--streaming does not belong to a batch run; leave it out"
    standard.streaming = streaming
    options.view_as(TestOptions).dry_run = _dry_run(options.view_as(TestOptions).dry_run)
    reason = reason or refuse_any(profile, options) or profile.settle(job, options)
    standard.runner = profile.beam_runner
    return Prepared(profile, options), reason


def _dry_run(given: str | bool) -> bool:
    """Beam takes any text for yes, ``false`` too."""
    if str(given).lower() not in ("true", "false"):
        raise ConfigError(f"--dry_run={given}: give true or false")
    return str(given).lower() == "true"


def check_known(beam_args: Sequence[str], own: Iterable[str] = ()) -> None:
    """Refuses what no option class of Beam knows.

    Args:
        own: options of the command itself (``--input``), as candidates for the nearest name.

    Raises:
        ConfigError: an unknown option, an argument that belongs to none, or a value that an option does not take.
    """
    parser = _parser()
    try:
        _, unknown = parser.parse_known_args(list(beam_args))
    except ConfigError as error:
        raise ConfigError(f"Beam option: {error}") from None
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.startswith("--") and len(name) > 2:
            known = [*own, *(n for n in parser._option_string_actions if n.startswith("--"))]
            raise ConfigError(f"unknown option {name}; {suggest(name, known)}")
        if name.startswith("-"):
            raise ConfigError(f"unknown option {name}; options of Beam begin with --")
    if unknown:
        listed = f"{unknown[0]!r}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        fix = (
            "; if the shell expanded a pattern, quote it: --input 'events/*.jsonl.gz'"
            if Path(unknown[0]).exists()
            else ""
        )
        raise ConfigError(f"unexpected argument {listed}{fix}")


def with_package(beam_args: Sequence[str], work_dir: Path) -> list[str]:
    """Adds ``--setup_file`` for workers that would else lack headrace; otherwise returns the arguments as they are.

    Workers in this process have it, and so does, by assumption, an image that the user names; a package that the user names
    is left to do its work.

    Args:
        work_dir: an empty folder that must exist until the job is submitted.
    """
    from apache_beam.options.pipeline_options import (
        PipelineOptions,
        PortableOptions,
        SetupOptions,
        StandardOptions,
        WorkerOptions,
    )

    from headrace.runners.package import make_setup_file

    options = PipelineOptions(list(beam_args))
    setup = options.view_as(SetupOptions)
    portable = options.view_as(PortableOptions)
    profile = find_profile(options.view_as(StandardOptions).runner or "direct")
    kind = environment_of(options) or profile.default_environment
    image = options.view_as(WorkerOptions).sdk_container_image or (
        kind == "DOCKER"
        and (portable.environment_config or portable.lookup_environment_option("docker_container_image"))
    )
    given = setup.setup_file or setup.extra_packages or image
    if not profile.ships_package or kind == "LOOPBACK" or given:
        return list(beam_args)
    return [*beam_args, f"--setup_file={make_setup_file(work_dir)}"]


def _parser() -> argparse.ArgumentParser:
    from apache_beam.options.pipeline_options import PipelineOptions

    import headrace.runners.declared_options  # noqa: F401  Beam knows its options from here on.

    class Parser(argparse.ArgumentParser):
        """Raises instead of leaving the process, and takes Beam's value-provider arguments as plain ones."""

        def error(self, message: str) -> NoReturn:
            raise ConfigError(message)

        def add_value_provider_argument(self, *args: str, **kwargs: object) -> None:
            self.add_argument(*args, **kwargs)  # type: ignore[arg-type]

    parser = Parser(allow_abbrev=False, add_help=False)
    classes = {str(cls): cls for cls in PipelineOptions.__subclasses__()}
    for cls in classes.values():
        cls._add_argparse_args(parser)
    return parser
