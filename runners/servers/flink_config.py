"""The configuration of a local Flink cluster: ``flink-conf.yaml``, logging, and the options of its Java processes."""

from collections.abc import Mapping
from pathlib import Path

from headrace.runners.servers.processes import HOST
from headrace.schemas.errors import ConfigError

JOBMANAGER_HEAP_MEGABYTES = 768
JOB_SERVER_HEAP_MEGABYTES = 768
TASKMANAGER_HEAP_MEGABYTES = 1024
_FRAMEWORK_MEGABYTES = 128
_DIRECT_MEGABYTES = 512

LOG_SETTINGS = """rootLogger.level = INFO
rootLogger.appenderRef.out.ref = OUT
appender.out.name = OUT
appender.out.type = Console
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1.} - %m%n
"""

_OPENED = (
    *(
        "java.base/java.lang",
        "java.base/java.util",
        "java.base/java.net",
        "java.base/java.io",
        "java.base/java.nio",
    ),
    *("java.base/sun.nio.ch", "java.base/java.lang.reflect", "java.base/java.text", "java.base/java.time"),
    *("java.base/java.util.concurrent", "java.base/java.util.concurrent.atomic"),
    "java.base/java.util.concurrent.locks",
)
_EXPORTED = ("java.base/sun.net.util", "java.security.jgss/sun.security.krb5")

OPENS = (
    *(f"--add-opens={name}=ALL-UNNAMED" for name in _OPENED),
    *(f"--add-exports={name}=ALL-UNNAMED" for name in _EXPORTED),
)
"""What Flink 1.19 reaches into on Java 17, as its own ``env.java.opts.all`` says."""

Setting = str | int | float | bool


def flink_settings(
    *, rest: int, rpc: int, slots: int, data: Path, scratch: Path, settings: Mapping[str, Setting]
) -> dict[str, Setting]:
    """Returns the cluster's settings.

    State is kept in RocksDB with incremental checkpoints; three checkpoints are retained, also of a cancelled job; a failed job is
    started again after 1 s, later up to 10 s, and given up after 20 failures with less than a minute between them; a process that
    is silent for 10 s is given up. What the REST interface tells of checkpoints is at most 200 ms old.

    Args:
        rest: port of the REST interface.
        rpc: port of the JobManager for TaskManagers.
        slots: of each TaskManager.
        data: for checkpoints and savepoints.
        scratch: for temporary files.
        settings: over the defaults, under Flink's own names.

    Raises:
        ConfigError: a setting that would move a port or an address, or that can't be written in one line.
    """
    fixed: dict[str, Setting] = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.bind-host": HOST,
        "jobmanager.rpc.port": rpc,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest,
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": slots,
    }
    for name, value in settings.items():
        if name in fixed:
            raise ConfigError(f"Flink setting {name} is the cluster's own; leave it out")
        if not name or any(c in f"{name}{value}" for c in "\n\r") or ": " in name:
            raise ConfigError(
                f"Flink setting {name!r} can't be written in one line; use Flink's name and a plain value"
            )
    return {
        **fixed,
        "taskmanager.cpu.cores": slots,
        "jobmanager.memory.heap.size": f"{JOBMANAGER_HEAP_MEGABYTES}m",
        "taskmanager.memory.framework.heap.size": f"{_FRAMEWORK_MEGABYTES}m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.task.heap.size": f"{TASKMANAGER_HEAP_MEGABYTES}m",
        "taskmanager.memory.task.off-heap.size": "0m",
        "taskmanager.memory.network.min": "128m",
        "taskmanager.memory.network.max": "128m",
        "taskmanager.memory.managed.size": "256m",
        "taskmanager.network.memory.buffers-per-channel": 16,
        "taskmanager.network.memory.floating-buffers-per-gate": 256,
        "taskmanager.memory.jvm-metaspace.size": f"{_DIRECT_MEGABYTES}m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "parallelism.default": 1,
        "io.tmp.dirs": str(scratch),
        "web.upload.dir": str(scratch),
        "state.backend.type": "rocksdb",
        "state.backend.incremental": True,
        "state.backend.rocksdb.compaction.style": "UNIVERSAL",
        "state.checkpoints.dir": (data / "checkpoints").as_uri(),
        "state.checkpoints.num-retained": 3,
        "state.savepoints.dir": (data / "savepoints").as_uri(),
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "restart-strategy.exponential-delay.backoff-multiplier": 2.0,
        "restart-strategy.exponential-delay.reset-backoff-threshold": "60 s",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": 20,
        "rest.cache.checkpoint-statistics.timeout": "200 ms",
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 10_000,
        **settings,
    }


def as_yaml(settings: Mapping[str, Setting]) -> str:
    """Returns the text of ``flink-conf.yaml``: Flink takes all behind the colon as the value."""
    lines = (
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    )
    return "\n".join(lines) + "\n"


def taskmanager_memory() -> tuple[str, ...]:
    """Limits of a TaskManager's Java process; they fit the sizes in :func:`flink_settings`."""
    heap = TASKMANAGER_HEAP_MEGABYTES + _FRAMEWORK_MEGABYTES
    return (
        "-Xms256m",
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={_DIRECT_MEGABYTES}m",
        f"-XX:MaxMetaspaceSize={_DIRECT_MEGABYTES}m",
    )
