"""The profile dimension: as-of joins against a plain loop, files that can't be used."""

import csv
import pickle
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas.columns import CODE, MONEY, TIME
from headrace.schemas.errors import ConfigError
from headrace.transforms import profiles
from headrace.transforms.keys import Key
from headrace.transforms.profiles import ProfileTable

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def write_csv(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def join(
    table: ProfileTable, users: list[str | None], times: list[datetime | None]
) -> tuple[dict[str, list[object]], int]:
    found, missing = table.join(pa.array(users, pa.string()), pa.array(times, TIME))
    return {name: array.to_pylist() for name, array in found.items()}, missing


def test_plain_join_from_csv_keeps_types_and_leading_zeros(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [["user_id", "tier", "age"], ["007", "gold", 44], ["8", "", 30]])
    table = ProfileTable(path)
    assert table.schema == pa.schema([("profile_tier", CODE), ("profile_age", pa.int64())])
    got, missing = join(table, ["8", None, "007", "7", ""], [at(0)] * 5)
    assert got == {
        "profile_tier": [None, None, "gold", None, None],
        "profile_age": [30, None, 44, None, None],
    }
    assert missing == 2


def test_parquet_values_keep_their_types(tmp_path: Path) -> None:
    data = pa.table(
        {
            "uid": pa.array([5, 6]),
            "limit": pa.array([Decimal("1.10"), None], MONEY),
            "tags": pa.array([["a"], []]),
            "name": pa.array(["x", "y"], pa.large_string()),
            "born": pa.array([date(2000, 1, 2), None]),
        }
    )
    pq.write_table(data, tmp_path / "p.parquet")
    table = ProfileTable(
        tmp_path / "p.parquet", key_column="uid", columns=["limit", "tags", "name"], prefix="u_"
    )
    assert table.schema == pa.schema(
        [("u_limit", MONEY), ("u_tags", pa.list_(pa.string())), ("u_name", CODE)]
    )
    got, missing = join(table, ["6", "5"], [at(0), None])
    assert got == {"u_limit": [None, Decimal("1.100000000")], "u_tags": [[], ["a"]], "u_name": ["y", "x"]}
    assert missing == 0


HOURS = st.integers(-3, 3)
USERS = st.sampled_from(["a", "b", "c", "", "é"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.dictionaries(st.tuples(USERS, HOURS | st.none()), st.integers(0, 99), min_size=1, max_size=12),
    events=st.lists(st.tuples(USERS | st.sampled_from([None, "z"]), HOURS | st.none()), max_size=20),
)
def test_as_of_join_is_the_latest_row_not_after_the_event(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[tuple[str, int | None], int],
    events: list[tuple[str | None, int | None]],
) -> None:
    path = tmp_path_factory.mktemp("p") / "p.parquet"
    since = [None if h is None else at(h) for _, h in rows]
    pq.write_table(
        pa.table({"user_id": [u for u, _ in rows], "since": pa.array(since, TIME), "v": list(rows.values())}),
        path,
    )
    table = ProfileTable(path, valid_from_column="since")

    def oracle(user: str | None, hour: int | None) -> int | None:
        if hour is None:
            return None
        fitting = [
            (-99 if h is None else h, v)
            for (u, h), v in rows.items()
            if u == user and (h is None or h <= hour)
        ]
        return max(fitting)[1] if fitting else None

    expected = [oracle(u, h) for u, h in events]
    times = [None if h is None else at(h) for _, h in events]
    got, missing = join(table, [u for u, _ in events], times)
    assert got == {"profile_v": expected}
    assert missing == sum(u is not None and e is None for (u, _), e in zip(events, expected, strict=True))


@pytest.mark.parametrize(
    "since",
    [
        ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00+00:00"],
        ["2026-01-01T01:00:00+01:00", "2026-01-01T19:00:00-05:00"],
        ["2026-01-01", "2026-01-02"],
        ["2026-01-01 00:00:00", "2026-01-02T00:00:00.000000Z"],
    ],
)
def test_times_in_csv(tmp_path: Path, since: list[str]) -> None:
    path = write_csv(tmp_path / "p.csv", [["user_id", "since", "v"], ["a", since[0], 1], ["a", since[1], 2]])
    table = ProfileTable(path, valid_from_column="since")
    got, _ = join(table, ["a"] * 4, [at(-0.001), at(0), at(23.999), at(24)])
    assert got == {"profile_v": [None, 1, 1, 2]}


def test_dates_and_nanoseconds_in_parquet(tmp_path: Path) -> None:
    for type_, value in ((pa.date32(), date(2026, 1, 1)), (pa.timestamp("ns"), datetime(2026, 1, 1))):
        data = pa.table({"user_id": ["a"], "since": pa.array([value], type_), "v": [1]})
        pq.write_table(data, tmp_path / f"{type_}.parquet".replace("[", "").replace("]", ""))
        table = ProfileTable(
            tmp_path / f"{type_}.parquet".replace("[", "").replace("]", ""), valid_from_column="since"
        )
        assert join(table, ["a", "a"], [at(0), at(-1)])[0] == {"profile_v": [1, None]}


def test_raw_ids_in_the_file_meet_tokens_in_events(tmp_path: Path) -> None:
    key = Key(tmp_path / "key", create=True)
    path = write_csv(tmp_path / "p.csv", [["user_id", "v"], ["ann", 1], ["bob", 2]])
    table = ProfileTable(path, tokenize=key)
    got, missing = join(table, [key.token("bob"), "ann", None], [at(0)] * 3)
    assert got == {"profile_v": [2, None, None]}
    assert missing == 1


def test_a_hash_collision_is_not_a_match(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [["user_id", "v"], ["a", 1], ["b", 2]])

    def weak(data: bytes, seed: int) -> int:
        return 7 if seed == 0 else data[0] % 2

    with patch.object(profiles, "xxh3_64_intdigest", weak):
        table = ProfileTable(path)
        assert join(table, ["a", "b", "c", "d"], [at(0)] * 4) == ({"profile_v": [1, 2, None, None]}, 2)


def test_pickle_holds_the_path_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", [["user_id", "v"], ["a", "secret-value"]])
    table = ProfileTable(path)
    data = pickle.dumps(table)
    assert b"secret-value" not in data
    copy = pickle.loads(data)
    copy.setup()
    assert join(copy, ["a"], [at(0)])[0] == {"profile_v": ["secret-value"]}
    write_csv(path, [["user_id", "v"], ["a", "other"]])
    with patch.dict(profiles._LOADED, clear=True), pytest.raises(ConfigError, match="is another file"):
        pickle.loads(data).setup()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([["user", "v"], ["a", 1]], {}, "has no column 'user_id' (key_column); it has user, v"),
        ([["user_id", "v"], ["a", 1]], {"columns": ["w"]}, "has no column 'w' (columns)"),
        (
            [["user_id", "v"], ["a", 1]],
            {"valid_from_column": "since"},
            "has no column 'since' (valid_from_column)",
        ),
        ([["user_id", "v"], ["a", 1], ["a", 2]], {}, "1 rows whose 'user_id' another row has too"),
        (
            [["user_id", "since", "v"], ["a", "2026-01-01", 1], ["a", "2026-01-01T00:00:00Z", 2]],
            {"valid_from_column": "since"},
            "1 rows whose 'user_id' and 'since' another row has too; keep one of each",
        ),
        (
            [["user_id", "since"], ["a", "soon"]],
            {"valid_from_column": "since"},
            "'since' holds text that is no ISO",
        ),
        ([["user_id", "v"], ["", 1], [None, 2]], {}, "'user_id' is null in 2 rows"),
        ([["user_id", "v"]], {}, "has no rows"),
        ([["user_id", "v"], ["a", 1, 2]], {}, "can't be read as Parquet or CSV"),
        ([], {}, "can't be read as Parquet or CSV"),
        (
            [["user_id", "os"], ["a", 1]],
            {"prefix": ""},
            "makes profile column 'os', which events have already",
        ),
    ],
)
def test_unusable_files(
    tmp_path: Path, rows: list[list[object]], options: dict[str, object], message: str
) -> None:
    path = write_csv(tmp_path / "p.csv", rows)
    with pytest.raises(ConfigError) as error:
        ProfileTable(path, **options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert str(path) in str(error.value) or "prefix" in message or "prefix" in str(error.value)


def test_missing_folders_and_wrong_types(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        ProfileTable(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="Is a directory"):
        ProfileTable(tmp_path)
    pq.write_table(pa.table({"user_id": [1.5], "since": [True]}), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match="'user_id' is double; a key is text or an integer"):
        ProfileTable(tmp_path / "f.parquet")
    pq.write_table(pa.table({"user_id": ["a"], "since": [True]}), tmp_path / "g.parquet")
    with pytest.raises(ConfigError, match="'since' is bool; it needs timestamps or dates"):
        ProfileTable(tmp_path / "g.parquet", valid_from_column="since")
    (tmp_path / "h.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="can't be read as Parquet"):
        ProfileTable(tmp_path / "h.parquet")
