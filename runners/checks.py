"""Looks at what a runner needs: are the programs and servers there, do they answer, and are they set up as a job needs it?"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace.runners import dataflow, flink_checks
from headrace.runners.finding import Finding
from headrace.runners.job_server import check_job_server
from headrace.runners.options import examine
from headrace.runners.prism_binary import describe_search, find_prism, prism_version
from headrace.runners.profile import environment_of
from headrace.schemas.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

ANSWER_SECONDS = 5.0
"""How long a server may take to answer."""

Mode = Literal["stream", "batch"]


@dataclass(frozen=True)
class _NoPaths:
    """A job of which only the runner is looked at."""

    shared_paths: bool = True

    def local_paths(self) -> Mapping[str, str]:
        return {}


def check_runner(name: str, beam_args: Sequence[str] = (), *, mode: Mode | None = None) -> list[Finding]:
    """Returns what was found, in the order in which a job would meet it.

    Args:
        name: of the runner, as ``--runner`` takes it.
        beam_args: options that a job would have.
        mode: for which kind of job; default: streams where the runner can run them.

    Raises:
        ConfigError: an unknown runner or option.
    """
    from headrace.runners.profiles import find_profile

    profile = find_profile(name)
    streaming = mode == "stream" or (mode is None and not profile.no_stream)
    args = [f"--runner={profile.name}", *beam_args]
    if profile.name == "dataflow" and streaming:
        args.append("--dry_run=true")
    prepared, reason = examine(args, _NoPaths(), streaming)
    kind = "a stream" if streaming else "a batch"
    findings = [
        Finding("options", "wrong", reason) if reason else Finding("options", "ok", f"fit for {kind}")
    ]
    options = prepared.options
    look = {"direct": _direct, "prism": _prism, "dataflow": _dataflow, "flink": _flink}.get(
        profile.name, _job_server
    )
    findings += look(options)
    return findings


def check_address(name: str, address: str, fix: str) -> Finding:
    """Connects to ``HOST:PORT``."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        return Finding(name, "wrong", f"{address} is no HOST:PORT", "give a host and a port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return Finding(name, "wrong", f"nobody answers at {address} ({error})", fix)
    return Finding(name, "ok", f"answers at {address}")


def _direct(options: "PipelineOptions") -> Iterator[Finding]:
    found = version("apache-beam")
    if found.startswith("2.77."):
        yield Finding("beam", "ok", found)
    else:
        yield Finding(
            "beam", "wrong", f"{found} is installed; 2.77 is needed", "pip install 'apache-beam[gcp]==2.77.*'"
        )


def _prism(options: "PipelineOptions") -> Iterator[Finding]:
    from apache_beam.options.pipeline_options import PortableOptions, PrismRunnerOptions

    if options.view_as(PortableOptions).job_endpoint:
        yield from _job_server(options)
        return
    binary = find_prism(options.view_as(PrismRunnerOptions).prism_location)
    if binary is None:
        yield Finding("prism", "wrong", f"not found: {describe_search()}", "headrace cluster up prism")
        return
    yield check_prism(binary)


def check_prism(binary: Path) -> Finding:
    """Runs a Prism binary and compares its version with Beam's."""
    fix = "build it for this machine: headrace cluster up prism"
    try:
        done = subprocess.run(
            [str(binary), "-h"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("prism", "wrong", f"{binary} does not run: {error}", fix)
    if b"-job_port" not in done.stdout:
        return Finding("prism", "wrong", f"{binary} runs, but is no Prism (its help names no -job_port)", fix)
    found, beam = prism_version(binary), version("apache-beam")
    if not found:
        return Finding(
            "prism", "warning", f"{binary} runs; its version is not noted in it", f"make sure it is {beam}"
        )
    if found != beam:
        return Finding(
            "prism",
            "warning",
            f"{binary} is {found}, Beam is {beam}; no run has covered the two together",
            "headrace cluster up prism builds the same version",
        )
    return Finding("prism", "ok", f"{binary} runs; version {found}")


def _job_server(options: "PipelineOptions") -> Iterator[Finding]:
    from apache_beam.options.pipeline_options import PortableOptions

    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint and endpoint != "embed":
        yield check_job_server(endpoint, ANSWER_SECONDS)
    yield from _worker_pool(options)


def _flink(options: "PipelineOptions") -> Iterator[Finding]:
    yield from flink_checks.look(options, ANSWER_SECONDS)
    yield from _worker_pool(options)


def _worker_pool(options: "PipelineOptions") -> Iterator[Finding]:
    from apache_beam.options.pipeline_options import PortableOptions

    if environment_of(options) != "EXTERNAL":
        return
    portable = options.view_as(PortableOptions)
    address = portable.environment_config or portable.lookup_environment_option("external_service_address")
    fix = "start it where the runner's workers are: python -m headrace.runners.worker_pool --port 50000"
    if not isinstance(address, str) or not address:
        yield Finding(
            "worker pool",
            "wrong",
            "EXTERNAL workers need its address",
            f"add --environment_config=HOST:PORT; {fix}",
        )
        return
    yield check_address("worker pool", address, fix)


def _dataflow(options: "PipelineOptions") -> Iterator[Finding]:
    try:
        import apache_beam.runners.dataflow.internal.apiclient  # noqa: F401
    except ImportError as error:
        yield Finding("google cloud", "wrong", str(error), "pip install 'apache-beam[gcp]==2.77.*'")
    else:
        yield Finding("google cloud", "ok", "Beam's Dataflow client is installed")
    yield check_credentials(os.environ)
    yield Finding("running", "warning", dataflow.NOT_YET, "use --dry-run, or --runner=flink")


def check_credentials(environment: Mapping[str, str]) -> Finding:
    """Looks for Google's application default credentials; their content is never shown, and nobody is asked whether they hold."""
    named = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    config = environment.get("CLOUDSDK_CONFIG")
    home = Path(config) if config else Path.home() / ".config" / "gcloud"
    path = Path(named) if named else home / "application_default_credentials.json"
    fix = "gcloud auth application-default login, or name a key file with GOOGLE_APPLICATION_CREDENTIALS"
    if not path.is_file():
        return Finding(
            "credentials",
            "wrong" if named else "warning",
            f"{path} does not exist; a job or template can't be submitted, unless this is a machine of Google Cloud",
            fix,
        )
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return Finding("credentials", "wrong", f"{path} can't be read as JSON", fix)
    if not isinstance(document, dict) or "type" not in document:
        return Finding("credentials", "wrong", f"{path} is no credentials file of Google Cloud", fix)
    return Finding("credentials", "ok", f"{path} is there")


def require_mode(mode: str) -> Mode:
    """Reads ``stream`` or ``batch``.

    Raises:
        ConfigError: any other text.
    """
    if mode == "stream":
        return "stream"
    if mode == "batch":
        return "batch"
    raise ConfigError(f"--for={mode}: give stream or batch")
