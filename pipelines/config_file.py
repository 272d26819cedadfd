"""Reading a configuration file into the settings of a pipeline."""

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from headrace.pipelines.settings import as_dict, build
from headrace.schemas.errors import ConfigError

Settings = TypeVar("Settings")


def load_settings(
    cls: type[Settings],
    path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Reads a configuration file and puts the given overrides over it.

    Args:
        cls: the settings dataclass.
        path: YAML, JSON or TOML, told by its suffix; ``None`` starts from the defaults. Relative paths in it are relative to
            the working directory, as on the command line.
        overrides: setting to value, as options give them; a value of ``None`` is no override.

    Raises:
        ConfigError: unreadable file, unknown key at any level, wrong type or value.
    """
    config = cls() if path is None else build(cls, _read(Path(path)), str(path))
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    if not given:
        return config
    for name, value in given.items():
        build(cls, {name: value}, "--" + name.replace("_", "-"))
    whole: Settings = build(cls, {**as_dict(config), **given}, "command line")
    return whole


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
