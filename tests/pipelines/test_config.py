import dataclasses
import json
import typing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipelines.config import BatchConfig, Format, LakeFormat, load_config
from headrace.pipelines.config_page import reference_page
from headrace.pipelines.event_settings import Compression, ProfilesConfig
from headrace.pipelines.settings import about, as_dict, build, check, convert, dump, identity, type_name
from headrace.schemas.errors import ConfigError
from headrace.transforms.filter_events import BUSINESS_RULES

ROOT = Path(__file__).parents[2]
CONFIG = """\
input: [a.jsonl, 'b/**']
output: out
now: 2024-05-17T14:00:00+02:00
max_age_seconds: 60
profiles: {path: users.csv, key_column: user_id, columns: [plan]}
filter: {noise: "event_type = 'click'"}
"""


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CONFIG))
    assert config == BatchConfig(
        input=["a.jsonl", "b/**"],
        output="out",
        now=datetime(2024, 5, 17, 12, tzinfo=UTC),
        max_age_seconds=60,
        profiles=ProfilesConfig(path="users.csv", key_column="user_id", columns=["plan"]),
        filter={"noise": "event_type = 'click'"},
    )
    assert config.max_ahead_seconds == 300
    assert config.rules == BUSINESS_RULES and config.rules is not BUSINESS_RULES


def test_the_suffix_tells_the_format(tmp_path: Path) -> None:
    expected = load_config(write(tmp_path, CONFIG))
    plain = yaml.safe_load(CONFIG)
    plain["now"] = "2024-05-17T12:00:00Z"
    toml = (
        'input = ["a.jsonl", "b/**"]\noutput = "out"\nnow = 2024-05-17T12:00:00Z\nmax_age_seconds = 60\n'
        '[profiles]\npath = "users.csv"\nkey_column = "user_id"\ncolumns = ["plan"]\n'
        "[filter]\nnoise = \"event_type = 'click'\"\n"
    )
    assert load_config(write(tmp_path, json.dumps(plain), "c.JSON")) == expected
    assert load_config(write(tmp_path, toml, "c.toml")) == expected
    assert load_config(write(tmp_path, "\ufeff" + CONFIG, "c.yml")) == expected


def test_nothing_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    assert load_config() == load_config(write(tmp_path, "# nothing\n")) == BatchConfig()


def test_options_go_over_the_file_unless_they_are_not_given(tmp_path: Path) -> None:
    overrides = {"input": ["c.csv"], "now": "2025-01-01T00:00:00Z", "output": None, "max_age_seconds": 7}
    config = load_config(write(tmp_path, CONFIG), overrides)
    assert (config.input, config.output, config.max_age_seconds) == (["c.csv"], "out", 7)
    assert config.now == datetime(2025, 1, 1, tzinfo=UTC)
    assert config.profiles is not None and config.profiles.key_column == "user_id"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inptu: [a]", "inptu: unknown setting 'inptu'; did you mean 'input'?"),
        (
            "max-age-seconds: 1",
            "max-age-seconds: unknown setting 'max-age-seconds'; did you mean 'max_age_seconds'?",
        ),
        ("zzz: 1", "zzz: unknown setting 'zzz'; known: output, schema, mapping"),
        (
            "profiles: {path: a, key_colum: b}",
            "profiles.key_colum: unknown setting 'key_colum'; did you mean 'key_column'?",
        ),
        ("profiles: {prefix: a}", "profiles: 'path' is missing (Parquet or CSV file of user profiles"),
        ("profiles: users.csv", "profiles: expected a table of settings, found text 'users.csv'"),
        ("- a", ": expected a table of settings, found a list"),
        ("input: a", "input: expected list of text, found text 'a'"),
        ("input: [a, 1]", "input[1]: expected text, found integer 1"),
        ("shards: '10'", "shards: expected integer, found text '10'"),
        ("shards: yes", "shards: expected integer, found true (quote it if text is meant)"),
        ("shards: 1.5", "shards: expected integer, found number 1.5"),
        ("shards: null", "shards: expected integer, found nothing (null)"),
        ("shared_paths: 1", "shared_paths: expected true or false, found integer 1"),
        ("output: {}", "output: expected text, found a table"),
        ("output: 2024-01-01", "output: expected text, found date 2024-01-01"),
        ("format: json", "format: text 'json' is not possible; did you mean 'jsonl'?"),
        ("format: 1", "format: integer 1 is not possible; known: auto, jsonl"),
        ("filter: {a: no}", "filter.a: expected text, found false"),
        ("filter: {1: x}", "filter (a key): expected text, found integer 1"),
        ("now: yesterday", "now: 'yesterday' is not a time; write it as 2024-05-17T12:00:00Z"),
        (
            "now: 2024-05-17T12:00:00",
            "now: 2024-05-17T12:00:00 has no time zone; for UTC write 2024-05-17T12:00:00Z",
        ),
        ("now: 5", "now: expected time with zone, found integer 5"),
        ("output: a\noutput: b", "key 'output' is given twice"),
        ("input: [a", "can't be parsed: while parsing a flow sequence"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b'{"output": "a", "output": "b"}', "key 'output' is given twice"),
        ("c.json", b"{", "can't be parsed: Expecting property name"),
        ("c.toml", b"a = ", "can't be parsed: Invalid value"),
        ("c.yaml", b"a: \xff", "is not UTF-8 (byte 3)"),
        (
            "c.ini",
            b"",
            "can't tell the format of a configuration from '.ini'; name it .yaml, .yml, .json, .toml",
        ),
        ("c.yaml/", None, "can't be read: Is a directory"),
        ("c.yaml", None, "can't be read: No such file or directory"),
    ],
)
def test_an_unreadable_file_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name.endswith("/"):
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shards": 0}, "shards is 0; it must be 1 or more"),
        ({"max_age_seconds": -1}, "max_age_seconds is -1; it must be 0 or more"),
        ({"split_bytes": 10}, "split_bytes is 10; it must be 1024 or more"),
        ({"lake_format": "iceberg"}, "lake_format: text 'iceberg' is not possible; known: delta, parquet"),
        ({"rules": {"Bad Name": "true"}}, "rules: 'Bad Name' can't be a reason code"),
        ({"rules": {"a": "true"}, "filter": {"a": "true"}}, "'a' is in rules and in filter"),
        ({"schema": "comerce"}, "unknown schema 'comerce'; did you mean commerce"),
        ({"now": datetime(2024, 1, 1)}, "has no time zone"),
    ],
)
def test_values_are_checked_however_they_come(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.split("(")[0]):
        BatchConfig(**values)
    with pytest.raises(ConfigError):
        load_config(None, values)


def test_a_wrong_option_is_named_as_one() -> None:
    with pytest.raises(
        ConfigError, match=r"^--lake-format: lake_format: text 'delat' .*did you mean 'delta'\?"
    ):
        load_config(None, {"lake_format": "delat"})
    with pytest.raises(ConfigError, match="--nwo: nwo: unknown setting 'nwo'; did you mean 'now'"):
        load_config(None, {"nwo": "x"})


def test_times_are_utc_whatever_their_zone() -> None:
    config = BatchConfig(now=datetime(2024, 5, 17, 14, tzinfo=timezone(timedelta(hours=2))))
    assert config.now is not None and config.now.tzinfo is UTC and config.now.hour == 12


def test_missing_paths_are_named() -> None:
    with pytest.raises(ConfigError, match="no input: name files with --input PATTERN"):
        BatchConfig(output="o").require_paths()
    with pytest.raises(ConfigError, match="no output: name a folder with --output OUT"):
        BatchConfig(input=["i"]).require_paths()
    BatchConfig(input=["i"], output="o").require_paths()


def test_local_paths_are_all_that_a_worker_opens() -> None:
    assert BatchConfig(input=["i", "j"], output="o").local_paths() == {
        "input[0]": "i",
        "input[1]": "j",
        "output": "o",
    }
    config = BatchConfig(
        input=["i"],
        output="o",
        key_file="k",
        country_database="c",
        profiles=ProfilesConfig(path="p", key_column="id"),
    )
    assert config.local_paths() == {
        "input[0]": "i", "output": "o", "key_file": "k", "profiles.path": "p", "country_database": "c",
    }  # fmt: skip


def test_identity_holds_what_decides_the_rows_and_no_place() -> None:
    a = BatchConfig(input=["a"], output="x", key_file="k", now=datetime(2024, 1, 1, tzinfo=UTC), shards=8)
    b = BatchConfig(input=["b"], output="y")
    assert identity(a) == identity(b)
    for change in (
        {"max_age_seconds": 1},
        {"filter": {"a": "true"}},
        {"schema": "commerce"},
        {"lake_format": "parquet"},
    ):
        assert identity(dataclasses.replace(a, **change)) != identity(a)  # type: ignore[arg-type]
    assert json.loads(json.dumps(identity(a))) == identity(a)


TEXTS = st.text(max_size=20)
SQL = st.dictionaries(st.from_regex(r"[a-c][a-z0-9_]{0,5}", fullmatch=True), TEXTS, max_size=2)
CONFIGS = st.builds(
    BatchConfig,
    input=st.lists(TEXTS, max_size=3),
    output=TEXTS,
    format=st.sampled_from(typing.get_args(Format)),
    compression=st.sampled_from(typing.get_args(Compression)),
    lake_format=st.sampled_from(typing.get_args(LakeFormat)),
    now=st.none() | st.datetimes(timezones=st.just(UTC)),
    max_age_seconds=st.integers(0, 10**9),
    mapping=st.dictionaries(
        TEXTS, TEXTS | st.fixed_dictionaries({"constant": TEXTS | st.integers()}), max_size=2
    ),
    rules=SQL,
    filter=st.just({}),
    key_file=st.none() | TEXTS,
    profiles=st.none()
    | st.builds(
        ProfilesConfig,
        path=TEXTS,
        key_column=TEXTS,
        valid_from_column=st.none() | TEXTS,
        columns=st.none() | st.lists(TEXTS, max_size=2),
        prefix=TEXTS,
    ),
    shared_paths=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(CONFIGS)
def test_the_printed_configuration_parses_back_to_itself(config: BatchConfig) -> None:
    printed = yaml.load(dump(config), yaml.SafeLoader)
    assert build(BatchConfig, printed, "printed") == config
    assert build(BatchConfig, json.loads(json.dumps(as_dict(config))), "dict") == config


def test_the_printed_configuration_explains_every_setting(tmp_path: Path) -> None:
    text = dump(BatchConfig())
    for field in dataclasses.fields(BatchConfig):
        assert f"\n{field.name}:" in "\n" + text
        assert field.metadata["help"].split()[0] in text
    assert "#   path: required  (text)" in text
    assert load_config(write(tmp_path, text)) == BatchConfig()


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run `python -m headrace.pipelines.config_page > docs/configuration.md`"
    assert "| `profiles.path` | text | required |" in page


@dataclasses.dataclass(frozen=True)
class Sample:
    ratio: float = dataclasses.field(default=0.5, metadata=about("A ratio.", minimum=0))
    names: dict[str, list[int]] = dataclasses.field(default_factory=dict, metadata=about("Names."))
    free: Any = dataclasses.field(default=None, metadata=about("Anything."))

    def __post_init__(self) -> None:
        check(self)


def test_integers_are_numbers_but_nothing_else_is_coerced() -> None:
    sample = build(Sample, {"ratio": 1, "names": {"a": [1]}, "free": {"b": None}}, "f")
    assert type(sample.ratio) is float and sample.names == {"a": [1]} and sample.free == {"b": None}
    with pytest.raises(ConfigError, match=r"f: names.a\[0\]: expected integer, found text '1'"):
        build(Sample, {"names": {"a": ["1"]}}, "f")
    with pytest.raises(ConfigError, match="expected number, found bytes"):
        convert(b"x", float, "f", "ratio")


def test_types_have_names() -> None:
    hints = typing.get_type_hints(Sample)
    assert [type_name(hints[name]) for name in ("ratio", "names", "free")] == [
        "number", "table of list of integer", "any value",
    ]  # fmt: skip
    assert type_name(dict[str, Any]) == "table"
