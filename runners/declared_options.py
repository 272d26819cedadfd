"""Pipeline options that Beam's Python SDK does not declare: those of Flink's job server, and two of headrace's own.

Beam asks a job server which options it takes, and logs the others as ``Discarding unparseable args``; a server that does not answer
that question, or a misspelt name, would run a stream without the options that keep it exact. Declared here they are parsed before
anything is submitted, and they are always among what is sent. Names and meaning: Beam's ``FlinkPipelineOptions.java``, 2.70.

Importing this module makes Beam know the options; it imports Beam.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions


def flag(text: str) -> bool:
    """Reads ``true`` or ``false``, in any case.

    Raises:
        argparse.ArgumentTypeError: any other text.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


@dataclass(frozen=True)
class FlinkOption:
    """An option of Flink's job server."""

    name: str
    kind: type
    about: str
    streaming_only: bool = False
    """True if a batch takes no notice of it."""


FLINK_OPTIONS = (
    FlinkOption("checkpointing_interval", int, "Milliseconds between checkpoints.", True),
    FlinkOption(
        "min_pause_between_checkpoints", int, "Milliseconds from one checkpoint's end to the next.", True
    ),
    FlinkOption("checkpoint_timeout_millis", int, "Milliseconds after which a checkpoint is given up.", True),
    FlinkOption("checkpointing_mode", str, "EXACTLY_ONCE, the only one that keeps the ledger true.", True),
    FlinkOption("num_concurrent_checkpoints", int, "Checkpoints at a time.", True),
    FlinkOption(
        "fail_on_checkpointing_errors", bool, "Restart the job when a checkpoint fails; default true.", True
    ),
    FlinkOption(
        "finish_bundle_before_checkpointing", bool, "End open bundles before a checkpoint, not in it.", True
    ),
    FlinkOption("max_bundle_time_mills", int, "Milliseconds after which a bundle is ended (so spelt)."),
    FlinkOption("max_bundle_size", int, "Elements after which a bundle is ended."),
    FlinkOption("externalized_checkpoints_enabled", bool, "Keep checkpoints for a later job.", True),
    FlinkOption(
        "retain_externalized_checkpoints_on_cancellation", bool, "Keep them after a cancellation too.", True
    ),
    FlinkOption(
        "unaligned_checkpoint_enabled", bool, "Let barriers overtake data; refused for streams.", True
    ),
    FlinkOption("force_unaligned_checkpoint_enabled", bool, "The same for loops; refused for streams.", True),
    FlinkOption(
        "shutdown_sources_after_idle_ms", int, "End idle sources; refused: no checkpoint follows.", True
    ),
    FlinkOption("number_of_execution_retries", int, "Restarts, over the cluster's restart strategy."),
    FlinkOption("execution_retry_delay", int, "Milliseconds before a restart."),
    FlinkOption("auto_watermark_interval", int, "Milliseconds between watermarks.", True),
    FlinkOption("savepoint_path", str, "Savepoint or checkpoint that the job starts from.", True),
    FlinkOption(
        "allow_non_restored_state", bool, "Drop state that finds no step; refused for streams.", True
    ),
    FlinkOption("state_backend", str, "Refused: it belongs to the cluster's configuration."),
    FlinkOption("state_backend_storage_path", str, "Refused: it belongs to the cluster's configuration."),
    FlinkOption("state_backend_factory", str, "Refused: it belongs to the cluster's configuration."),
    FlinkOption("object_reuse", bool, "Flink's object reuse mode."),
    FlinkOption("operator_chaining", bool, "Flink's operator chaining; default true."),
    FlinkOption("faster_copy", bool, "Leave out copies between chained operators."),
    FlinkOption("disable_metrics", bool, "No Beam metrics in Flink."),
    FlinkOption("latency_tracking_interval", int, "Milliseconds between latency marks; 0: none."),
    FlinkOption("execution_mode_for_batch", str, "PIPELINED, BATCH or BATCH_FORCED."),
    FlinkOption(
        "re_iterable_group_by_key_result", bool, "Allow to read a group twice; it has to fit in memory."
    ),
    FlinkOption("use_data_stream_for_batch", bool, "Run batches with Flink's DataStream API."),
    FlinkOption("report_checkpoint_duration", str, "Metric namespace for checkpoint durations.", True),
    FlinkOption("flink_conf_dir", str, "Folder of Flink configuration on the job server's machine."),
    FlinkOption("attached_mode", bool, "Stay with the job; refused otherwise.", True),
    FlinkOption("job_check_interval_in_secs", int, "Seconds between looks at a job.", True),
)
"""What Beam's Python SDK lacks; it has ``parallelism``, ``max_parallelism`` and ``flink_master``."""


class FlinkOptions(PipelineOptions):
    """Options of Flink's job server; None (not sent) unless given or set by the profile."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        for option in FLINK_OPTIONS:
            name, text = f"--{option.name}", f"Flink: {option.about}"
            if option.kind is bool:
                parser.add_argument(name, type=flag, nargs="?", const=True, default=None, help=text)
            else:
                parser.add_argument(name, type=option.kind, default=None, help=text)


class HeadraceOptions(PipelineOptions):
    """Options of headrace that concern a runner."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument(
            "--flink_rest",
            "--flink-rest",
            default=None,
            help="Flink's REST address, http://HOST:PORT; a stream commits what the checkpoints told there contain.",
        )
        parser.add_argument(
            "--prism_download",
            "--prism-download",
            type=flag,
            nargs="?",
            const=True,
            default=None,
            help="Let Beam download Prism from its releases if none is found.",
        )


def given_flink_options(options: PipelineOptions) -> dict[str, Any]:
    """Returns the options of Flink's job server that are set, by name."""
    flink = options.view_as(FlinkOptions)
    values = {option.name: getattr(flink, option.name) for option in FLINK_OPTIONS}
    return {name: value for name, value in values.items() if value is not None}
