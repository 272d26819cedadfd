"""The configuration of the batch pipeline.

Settings, their defaults, ``--print-config`` and ``docs/configuration.md`` all come from the declarations here, in
``stream_config.py`` and in ``event_settings.py``; ``config_page.py`` writes the page.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.settings import about
from headrace.schemas.errors import ConfigError

Format = Literal["auto", "jsonl", "csv", "parquet", "avro", "weblog"]
LakeFormat = Literal["delta", "parquet"]


@dataclass(frozen=True, kw_only=True)
class BatchConfig(EventSettings):
    """Everything that decides what a batch run reads, does and writes.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting and the fix.
    """

    input: list[str] = field(
        default_factory=list,
        metadata=about(
            "Files to read: paths or patterns such as 'events/**/*.jsonl.gz', quoted from the shell.",
            identity=False,
        ),
    )
    format: Format = field(
        default="auto",
        metadata=about(
            "Format of the input; auto looks at each file's name and first bytes. Compression (gzip, zstd) is found out always."
        ),
    )
    now: datetime | None = field(
        default=None,
        metadata=about(
            "Reference time: events older than max_age_seconds before it are stale, more than max_ahead_seconds after "
            "it future. null takes the start of the first run into this output, which is saved in OUT/manifest.json "
            "and used again on a rerun. For an archive give the end of its data.",
            identity=False,
        ),
    )
    lake_format: LakeFormat = field(
        default="delta", metadata=about("delta writes Delta tables, parquet plain folders of Parquet files.")
    )
    shards: int = field(
        default=64,
        metadata=about(
            "Shards of the dedupe; more need less memory at once, fewer are faster.",
            minimum=1,
            identity=False,
        ),
    )
    split_bytes: int = field(
        default=64 * 2**20,
        metadata=about("Input bytes that one task reads; it decides the files' sizes.", minimum=2**10),
    )

    def require_paths(self) -> None:
        """Raises ConfigError if input or output is not given."""
        if not self.input:
            raise ConfigError("no input: name files with --input PATTERN or `input` in the configuration")
        if not self.output:
            raise ConfigError("no output: name a folder with --output OUT or `output` in the configuration")

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        return {f"input[{i}]": path for i, path in enumerate(self.input)} | super().local_paths()


def load_config(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None
) -> BatchConfig:
    """Reads the configuration of a batch run; see :func:`headrace.pipelines.config_file.load_settings`."""
    return load_settings(BatchConfig, path, overrides)
