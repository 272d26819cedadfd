from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace.pipelines.config_file import load_settings
from headrace.pipelines.settings import identity
from headrace.pipelines.stream_config import MOST_READERS, MOST_SHARDS, StreamConfig, end_of
from headrace.schemas.errors import ConfigError

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("now", NOON),
        ("90s", NOON + timedelta(seconds=90)),
        ("10m", NOON + timedelta(minutes=10)),
        ("2h", NOON + timedelta(hours=2)),
        ("0s", NOON),
        ("2026-01-05T13:00:00Z", NOON + timedelta(hours=1)),
        ("2026-01-05T13:00:00+02:00", NOON - timedelta(hours=1)),
    ],
)
def test_until(until: str, expected: datetime) -> None:
    assert end_of(until, NOON) == expected
    assert StreamConfig(until=until).until == until


@pytest.mark.parametrize("until", ["", "tomorrow", "10", "10d", "-5m", "1.5h", "m", "²m"])
def test_until_that_is_no_time(until: str) -> None:
    with pytest.raises(ConfigError) as error:
        StreamConfig(until=until)
    assert str(error.value) == (
        f"until is {until!r}; give a time with its zone (2026-01-05T13:00:00Z), `now`, or a duration (90s, 10m, 2h)"
    )


def test_until_without_a_zone() -> None:
    with pytest.raises(ConfigError, match=r"without a zone; add one, for example 2026-01-05T13:00:00Z$"):
        StreamConfig(until="2026-01-05T13:00:00")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("readers", 0, "readers"),
        ("readers", MOST_READERS + 1, f"readers is {MOST_READERS + 1}; it may be {MOST_READERS} at most"),
        ("shards", MOST_SHARDS + 1, f"shards is {MOST_SHARDS + 1}; it may be {MOST_SHARDS} at most"),
        ("window_shards", 0, "window_shards"),
        ("dedupe_seconds", 59, "dedupe_seconds"),
        ("poll_seconds", 0.0, "poll_seconds"),
        ("commit_seconds", -1.0, "commit_seconds"),
        ("max_events", 0, "max_events"),
        ("poison_attempts", 0, "poison_attempts"),
        ("format", "csv", "format"),
        ("rules", {"Bad Name": "x"}, "can't be a reason code"),
    ],
)
def test_values_out_of_range(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**{setting: value})


def test_source_and_output_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"^no source: name a stream with --source"):
        StreamConfig(output="o").require_paths()
    with pytest.raises(ConfigError, match=r"^no output: name a folder with --output"):
        StreamConfig(source="dir:x").require_paths()
    StreamConfig(source="dir:x", output="o").require_paths()


def test_only_a_folder_is_a_path_that_workers_must_reach() -> None:
    config = StreamConfig(source="dir:/data/in?glob=*.gz", output="o", key_file="k")
    assert config.local_paths() == {"output": "o", "key_file": "k", "source": "/data/in"}
    assert "source" not in StreamConfig(source="kafka://h:1/t", output="o").local_paths()


def test_what_decides_the_rows_is_the_identity() -> None:
    config = StreamConfig(source="dir:x", output="o")
    plain = {"output": "p", "readers": 3, "shards": 4, "until": "now", "max_events": 9, "poll_rows": 7}
    assert identity(config) == identity(StreamConfig(source="dir:x", **plain))
    for name, value in (("dedupe_seconds", 60), ("allowed_lateness_seconds", 1), ("max_age_seconds", 5)):
        assert identity(config) != identity(StreamConfig(source="dir:x", output="o", **{name: value}))


def test_a_misspelt_setting_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        load_settings(StreamConfig, None, {"wndow_shards": 2})
