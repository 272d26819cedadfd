"""Addresses of servers that ``headrace cluster up`` started on this machine."""

from dataclasses import dataclass

from headrace.runners.servers.flink import FlinkCluster


@dataclass(frozen=True)
class LocalFlink:
    """A Flink cluster of this machine."""

    job_endpoint: str
    rest: str
    worker_pool: str
    """Empty if it was started without one."""


def find_flink() -> LocalFlink | None:
    """Returns the addresses of the Flink cluster in ``$HEADRACE_CLUSTER_DIR``; None if none is up there."""
    cluster = FlinkCluster()
    if cluster.status().state != "up":
        return None
    pool = cluster.worker_pool_address if cluster.option("worker_pool") else ""
    return LocalFlink(cluster.job_endpoint, cluster.rest_url, pool)
