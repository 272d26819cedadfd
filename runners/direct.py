"""The runner of this process: Beam's FnApiRunner.

``DirectRunner`` is mapped onto it: in Beam 2.77 that first tries Prism and downloads it from GitHub; without a network it falls
back with a line at INFO, so two machines run the same command on two runners.
"""

from typing import TYPE_CHECKING

from headrace.runners.profile import Job, Profile

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """One process unless told otherwise; the in-memory mode takes more workers but does not use them."""
    from apache_beam.options.pipeline_options import DirectOptions

    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        return (
            f"--direct_num_workers={direct.direct_num_workers} has no effect in memory, where everything runs in one worker; "
            "add --direct_running_mode=multi_processing"
        )
    return None


PROFILE = Profile(
    "direct",
    "FnApiRunner",
    "batches in this process; the default",
    settle,
    versions="Beam 2.77",
    no_stream=(
        "it runs bounded input only: on a stream its timers fire early and sources end at once, without an error; use "
        "--runner=prism on this machine, or --runner=flink"
    ),
    aliases=("DirectRunner",),
)
