"""Spark, for batches, behind a job server of the user's."""

from typing import TYPE_CHECKING

from headrace.runners.profile import Job, Profile, refuse_environment

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def settle(job: Job, options: "PipelineOptions") -> str | None:
    """Takes a job server that runs already; Beam would else download one."""
    from apache_beam.options.pipeline_options import PortableOptions, SparkRunnerOptions

    spark = options.view_as(SparkRunnerOptions)
    if spark.spark_submit_uber_jar or spark.spark_job_server_jar:
        return (
            "--spark_submit_uber_jar and --spark_job_server_jar make Beam build or start a job server; start it yourself and add "
            "--job_endpoint=HOST:PORT"
        )
    if not options.view_as(PortableOptions).job_endpoint:
        return (
            "it needs the address of a Spark job server; start one (java -jar beam-runners-spark-3-job-server.jar "
            "--spark-master-url=spark://HOST:7077; on this machine: headrace cluster up spark) and add --job_endpoint=HOST:PORT"
        )
    return refuse_environment(job, options)


PROFILE = Profile(
    "spark",
    "SparkRunner",
    "batches on Spark, through a job server of yours (--job_endpoint)",
    settle,
    versions="Spark 3.5.0 within the job server of Beam 2.70.0; no Spark cluster",
    no_stream=(
        "a stream keeps its dedupe and windows in state, and no run of ours has shown that Beam's Spark runner keeps it in "
        "streaming; use --runner=flink"
    ),
    ships_package=True,
)
