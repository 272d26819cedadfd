"""The configuration of the batch pipeline.

Settings, their defaults, ``--print-config`` and ``docs/configuration.md`` all come from the declaration below. Write the page anew
with ``python -m headrace.pipelines.config > docs/configuration.md``.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from headrace.pipelines.settings import about, as_dict, build, check, dump, reference
from headrace.schemas.errors import ConfigError

Format = Literal["auto", "jsonl", "csv", "parquet", "avro", "weblog"]
Compression = Literal["zstd", "snappy", "none"]
LakeFormat = Literal["delta", "parquet"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _business_rules() -> dict[str, str]:
    from headrace.transforms.filter_events import BUSINESS_RULES

    return dict(BUSINESS_RULES)


@dataclass(frozen=True, kw_only=True)
class ProfilesConfig:
    """A dimension with one row for each user, or for each user and time, joined as of the event's time."""

    path: str = field(metadata=about("Parquet or CSV file of user profiles; a CSV file has a header."))
    key_column: str = field(
        default="user_id",
        metadata=about(
            "Column that holds the user's id as the events state it; it is tokenised for the join."
        ),
    )
    valid_from_column: str | None = field(
        default=None,
        metadata=about(
            "Column with the time from which a row holds, if profiles change; null if each user has one row."
        ),
    )
    columns: list[str] | None = field(
        default=None, metadata=about("Columns to add to the events; null adds all others.")
    )
    prefix: str = field(default="profile_", metadata=about("Put before the names of the added columns."))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
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
    output: str = field(
        default="",
        metadata=about(
            "Folder to write to. It is made if it is missing; one that another input or configuration made is refused.",
            identity=False,
        ),
    )
    format: Format = field(
        default="auto",
        metadata=about(
            "Format of the input; auto looks at each file's name and first bytes. Compression (gzip, zstd) is found out always."
        ),
    )
    schema: str | None = field(
        default=None,
        metadata=about(
            "Family that all events are held against, NAME or NAME:VERSION (`headrace schemas list`); "
            "null finds it event by event."
        ),
    )
    mapping: dict[str, Any] = field(
        default_factory=dict,
        metadata=about(
            "Maps records of your own onto the envelope's columns: target column to source path, or to a table "
            "with `from`, `cast`, `default` and `map`, or `value` for a constant (see `headrace.connectors.map_fields`)."
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
    max_age_seconds: int = field(
        default=86_400,
        metadata=about("Events older than the reference time by more are rejected as stale.", minimum=0),
    )
    max_ahead_seconds: int = field(
        default=300,
        metadata=about("Events ahead of the reference time by more are rejected as future.", minimum=0),
    )
    rules: dict[str, str] = field(
        default_factory=_business_rules,
        metadata=about(
            "What no valid event does, name to SQL condition over the lake's columns; an event for which one is true is "
            "rejected with that name. What you give replaces all default rules."
        ),
    )
    filter: dict[str, str] = field(
        default_factory=dict,
        metadata=about(
            "Low-value events to leave out, name to SQL condition; an event for which one is true is rejected "
            "with that name, and so counted."
        ),
    )
    profiles: ProfilesConfig | None = field(
        default=None, metadata=about("User profiles to join; null joins none.")
    )
    country_database: str | None = field(
        default=None,
        metadata=about(
            "MMDB file for the country of an address; null uses the packaged registry assignments."
        ),
    )
    key_file: str | None = field(
        default=None,
        metadata=about(
            "Secret key for tokens and sealed documents; null uses $HEADRACE_KEY_FILE, else ~/.config/headrace/key "
            "(`headrace key create`).",
            identity=False,
        ),
    )
    lake_format: LakeFormat = field(
        default="delta", metadata=about("delta writes Delta tables, parquet plain folders of Parquet files.")
    )
    compression: Compression = field(
        default="zstd", metadata=about("Compression of the Parquet files written.")
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
    max_record_bytes: int = field(
        default=16 * 2**20,
        metadata=about("A longer record is quarantined without being parsed.", minimum=2**10),
    )
    shared_paths: bool = field(
        default=False,
        metadata=about(
            "Says that every path here names the same file on all of the runner's workers (a network file system); "
            "without it a runner with workers elsewhere is refused.",
            identity=False,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        for section in ("rules", "filter"):
            for name in getattr(self, section):
                if not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{section}: {name!r} can't be a reason code; use lower-case letters, digits and '_', "
                        "beginning with a letter"
                    )
        both = sorted(set(self.rules) & set(self.filter))
        if both:
            raise ConfigError(f"{both[0]!r} is in rules and in filter; give each its own name")
        if self.schema is not None:
            from headrace.schemas.registry import Registry

            Registry.default().get(self.schema)

    def require_paths(self) -> None:
        """Raises ConfigError if input or output is not given."""
        if not self.input:
            raise ConfigError("no input: name files with --input PATTERN or `input` in the configuration")
        if not self.output:
            raise ConfigError("no output: name a folder with --output OUT or `output` in the configuration")

    def local_paths(self) -> dict[str, str]:
        """Returns the paths that workers must reach, by the setting that names them."""
        paths = {f"input[{i}]": path for i, path in enumerate(self.input)}
        paths["output"] = self.output
        if self.key_file is not None:
            paths["key_file"] = self.key_file
        if self.profiles is not None:
            paths["profiles.path"] = self.profiles.path
        if self.country_database is not None:
            paths["country_database"] = self.country_database
        return paths


def load_config(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None
) -> BatchConfig:
    """Reads a configuration file and puts the given overrides over it.

    Args:
        path: YAML, JSON or TOML, told by its suffix; ``None`` starts from the defaults. Relative paths in it are relative to
            the working directory, as on the command line.
        overrides: setting to value, as options give them; a value of ``None`` is no override.

    Raises:
        ConfigError: unreadable file, unknown key at any level, wrong type or value.
    """
    config = BatchConfig() if path is None else build(BatchConfig, _read(Path(path)), str(path))
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    if not given:
        return config
    for name, value in given.items():
        build(BatchConfig, {name: value}, "--" + name.replace("_", "-"))
    return build(BatchConfig, {**as_dict(config), **given}, "command line")


def _read(path: Path) -> object:
    readers: dict[str, Callable[[str], object]] = {
        ".yaml": _yaml,
        ".yml": _yaml,
        ".json": _json,
        ".toml": tomllib.loads,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"{path}: can't tell the format of a configuration from {path.suffix!r}; name it {', '.join(readers)}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"configuration {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration {path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    try:
        data = reader(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"configuration {path} can't be parsed: {reason}") from error
    return {} if data is None else data


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> object:
    return yaml.load(text, _Loader)


def _json(text: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"key {key!r} is given twice")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=once)


def reference_page() -> str:
    """Returns ``docs/configuration.md``."""
    return f"""# Configuration of the batch pipeline

Written from the declaration in `pipelines/config.py`; change it there and run
`python -m headrace.pipelines.config > docs/configuration.md`.

`headrace run batch --config FILE` reads YAML, JSON or TOML, told by the suffix. Options on the command line go over the file.
An unknown key, a wrong type or a key given twice is refused with its place. Relative paths are relative to the working directory.
`headrace run batch --print-config` prints the configuration in effect, ready to be saved and edited.

{reference(BatchConfig)}

## Default configuration

```yaml
{dump(BatchConfig()).rstrip()}
```
"""


if __name__ == "__main__":
    print(reference_page(), end="")
