"""From settings to the stages of a pipeline, and to what identifies them."""

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from headrace.pipelines.definition import Definition
from headrace.pipelines.event_settings import EventSettings
from headrace.pipelines.metric_settings import windows_from
from headrace.pipelines.settings import identity
from headrace.transforms.keys import Key
from headrace.transforms.profiles import ProfileTable


def build_definition(config: EventSettings) -> Definition:
    """Builds the stages that a configuration asks for."""
    key = Key(config.key_file, create=config.key_file is None)
    profiles = None
    if config.profiles is not None:
        p = config.profiles
        profiles = ProfileTable(
            p.path,
            key_column=p.key_column,
            valid_from_column=p.valid_from_column,
            columns=p.columns,
            prefix=p.prefix,
            tokenize=key,
        )
    definition = Definition(
        key=key,
        schema=config.schema,
        max_age=timedelta(seconds=config.max_age_seconds),
        max_ahead=timedelta(seconds=config.max_ahead_seconds),
        country_database=config.country_database,
        profiles=profiles,
        rules=config.rules,
        filter=config.filter,
    )
    definition = replace(definition, metrics=windows_from(config.metrics, definition.lake_schema().names))
    definition.filters()  # Wrong rules are refused before anything is written.
    return definition


def definition_identity(config: EventSettings, definition: Definition) -> dict[str, Any]:
    """What decides the rows: settings, key, schemas, and the content of the reference files."""
    content = identity(config)
    content["metrics"] = {name: repr(windows) for name, windows in sorted(definition.metrics.items())}
    content["key"] = definition.key.fingerprint
    registry = definition.registry
    schemas = [registry.get(f"{n}:{v}").document for n in registry.names() for v in registry.versions(n)]
    content["schemas_checksum"] = hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()
    for name, path in (
        ("profiles", config.profiles.path if config.profiles else None),
        ("country_database", config.country_database),
    ):
        if path:
            with open(path, "rb") as file:
                content[f"{name}_checksum"] = hashlib.file_digest(file, "sha256").hexdigest()
    return content
