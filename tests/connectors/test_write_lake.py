import contextlib
import datetime as dt
import itertools
import os
import random
import resource
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors import write_lake
from headrace.connectors.atomic_file import OutputError
from headrace.connectors.write_lake import STATISTICS, PartitionedWriter
from headrace.schemas.columns import CODE, ENRICHED_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.rejects import UNMASKED

MIDNIGHT = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)


def events(times, **columns):
    """Rows at these times (hours after midnight of 2026-01-05), numbered by origin_position."""
    moments = [MIDNIGHT + dt.timedelta(hours=t) for t in times]
    columns = {
        "event_id": pa.array([f"id-{t}" for t in times]),
        "event_time": pa.array(moments, ENRICHED_SCHEMA.field("event_time").type),
        "event_date": pa.array([m.date() for m in moments], pa.date32()),
        "origin_position": pa.array(range(len(times)), pa.int64()),
        **columns,
    }
    return conform(columns, ENRICHED_SCHEMA, len(times))


def write(root, batches, **options):
    writer = PartitionedWriter(root, partition="event_date", name="000007", **options)
    for batch in batches:
        writer.write(batch)
    return writer.close()


def rows_of(root, files, columns=None):
    """{date: rows in order}, by pyarrow, which knows nothing of the writer."""
    found = {}
    for file in files:
        with pq.ParquetFile(root / file.path) as parquet:
            found.setdefault(file.partition["event_date"], []).extend(parquet.read(columns).to_pylist())
    return found


@contextlib.contextmanager
def files_of_at_most(size_bytes):
    """Makes real writes fail once a file passes the size: what a full disk does, without filling one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_rows_go_to_the_folder_of_their_date_in_their_order(tmp_path):
    files = write(tmp_path, [events([1, 30, 2]), events([25, 3])])
    assert [f.path for f in files] == [
        "event_date=2026-01-05/part-000007.parquet",
        "event_date=2026-01-06/part-000007.parquet",
    ]
    assert [f.rows for f in files] == [3, 2]
    assert [f.partition for f in files] == [{"event_date": "2026-01-05"}, {"event_date": "2026-01-06"}]
    assert [f.size_bytes for f in files] == [os.path.getsize(tmp_path / f.path) for f in files]
    ids = {date: [r["event_id"] for r in rows] for date, rows in rows_of(tmp_path, files).items()}
    assert ids == {"2026-01-05": ["id-1", "id-2", "id-3"], "2026-01-06": ["id-30", "id-25"]}


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(-60, 200), max_size=12), max_size=8),
    rows_per_group=st.integers(1, 30),
    open_partitions=st.integers(1, 4),
    plain=st.booleans(),
)
def test_any_batches_are_split_as_an_oracle_says(
    tmp_path_factory, batches, rows_per_group, open_partitions, plain
):
    root = tmp_path_factory.mktemp("lake")
    serial, expected, made = itertools.count(), {}, []
    for hours in batches:
        numbers = [next(serial) for _ in hours]
        browsers = [None if n % 5 == 0 else f"browser {n % 7}" for n in numbers]
        codes = pa.array(browsers, pa.string())
        batch = events(hours, origin_position=pa.array(numbers, pa.int64()), browser=codes)
        if plain and len(made) % 2:
            names = batch.schema.names
            arrays = [codes if name == "browser" else a for name, a in zip(names, batch.columns, strict=True)]
            batch = pa.record_batch(arrays, names=names)
        made.append(batch.select(["event_date", "origin_position", "event_time", "browser"]))
        for hour, number, browser in zip(hours, numbers, browsers, strict=True):
            date = (MIDNIGHT + dt.timedelta(hours=hour)).date().isoformat()
            expected.setdefault(date, []).append((number, browser))
    files = write(root, made, rows_per_group=rows_per_group, open_partitions=open_partitions)
    found = {}
    for file in files:
        with pq.ParquetFile(root / file.path) as parquet:
            rows = parquet.read().to_pylist()
            assert all(
                parquet.metadata.row_group(g).num_rows <= rows_per_group
                for g in range(parquet.num_row_groups)
            )
        assert file.rows == file.stats["numRecords"] == len(rows)
        found.setdefault(file.partition["event_date"], []).extend(
            (r["origin_position"], r["browser"]) for r in rows
        )
    # A date's files are not in the order of their names, its rows within each are.
    assert {date: sorted(rows, key=lambda r: r[0]) for date, rows in found.items()} == expected
    assert len({f.path for f in files}) == len(files)


def test_order_within_a_date_survives_waiting_rows(tmp_path):
    rng = random.Random(3)
    batches = [events([rng.choice([1, 1, 1, 1, 30, 60, 90]) for _ in range(50)]) for _ in range(20)]
    batches = [
        conform(
            {
                **dict(zip(b.schema.names, b.columns, strict=True)),
                "origin_position": pa.array(range(50 * i, 50 * i + 50)),
            },
            ENRICHED_SCHEMA,
            50,
        )
        for i, b in enumerate(batches)
    ]
    files = write(tmp_path, batches, rows_per_group=200)
    assert len(files) == 4
    for rows in rows_of(tmp_path, files).values():
        positions = [r["origin_position"] for r in rows]
        assert positions == sorted(positions)
    assert sum(f.rows for f in files) == 1_000


def test_types_are_those_any_reader_knows(tmp_path):
    batch = events(
        [1.5, 2],
        price=pa.array([Decimal("19.990000001"), None], pa.decimal128(38, 9)),
        browser=pa.array(["Firefox", None]),
        is_bot=pa.array([True, None]),
    )
    (file,) = write(tmp_path, [batch])
    with pq.ParquetFile(tmp_path / file.path) as parquet:
        assert parquet.metadata.metadata is None
        schema = parquet.schema_arrow
    assert schema.names == [n for n in ENRICHED_SCHEMA.names if n != "event_date"]
    for field in ENRICHED_SCHEMA:
        if field.name != "event_date":
            assert schema.field(field.name).type == (pa.string() if field.type == CODE else field.type)
    rows = duckdb.execute(
        "select event_date::varchar, browser, price::varchar, is_bot, epoch_us(event_time) from "
        f"read_parquet('{tmp_path}/**/*.parquet', hive_partitioning = true) order by event_time"
    ).fetchall()
    micros = int(MIDNIGHT.timestamp()) * 1_000_000
    assert rows == [
        ("2026-01-05", "Firefox", "19.990000001", True, micros + 5_400_000_000),
        ("2026-01-05", None, None, None, micros + 7_200_000_000),
    ]


def test_dictionary_columns_are_dictionaries_in_the_file_without_values_of_other_rows(tmp_path):
    browsers = pa.array(["Alpha", "Omega", "Omega"]).dictionary_encode()
    files = write(tmp_path, [events([1, 30, 30], browser=browsers)], compression="none")
    first, second = ((tmp_path / f.path).read_bytes() for f in files)
    assert b"Alpha" in first and b"Omega" not in first
    assert b"Omega" in second and b"Alpha" not in second
    with pq.ParquetFile(tmp_path / files[0].path) as parquet:
        chunk = parquet.metadata.row_group(0).column(parquet.schema_arrow.get_field_index("browser"))
        assert chunk.has_dictionary_page
        assert not parquet.metadata.row_group(0).column(0).has_dictionary_page


def test_unusual_dictionaries_keep_their_values(tmp_path):
    with_null = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int32()), pa.array(["x", None]))
    doubled = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(["x", "x", "y"]))
    narrow = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["p", "q"]))
    batch = events([1, 2, 3], browser=with_null, os=doubled)
    index = batch.schema.get_field_index("region")
    arrays = [*batch.columns[:index], narrow, *batch.columns[index + 1 :]]
    batch = pa.record_batch(arrays, names=batch.schema.names)
    (file,) = write(tmp_path, [batch, batch])
    rows = rows_of(tmp_path, [file])["2026-01-05"]
    assert [r["browser"] for r in rows] == ["x", None, None] * 2
    assert [r["os"] for r in rows] == ["x", "x", "y"] * 2
    assert [r["region"] for r in rows] == ["p", "q", "p"] * 2


def test_many_distinct_values_and_many_small_dictionaries_keep_their_values(tmp_path):
    values = [f"agent {i} {'x' * 40}" for i in range(40_000)]
    batches = [
        events([1] * 2_000, user_agent=pa.array(values[i : i + 2_000])).select(["event_date", "user_agent"])
        for i in range(0, 40_000, 2_000)
    ]
    (file,) = write(tmp_path, batches, rows_per_group=16_384)
    assert [r["user_agent"] for r in rows_of(tmp_path, [file], ["user_agent"])["2026-01-05"]] == values


def test_the_same_batches_give_the_same_bytes(tmp_path):
    rng = random.Random(5)
    hours = [[rng.randint(0, 90) for _ in range(300)] for _ in range(4)]
    contents = []
    for root in ("one", "two"):
        files = write(tmp_path / root, map(events, hours), rows_per_group=256, open_partitions=2)
        contents.append([(f, (tmp_path / root / f.path).read_bytes()) for f in files])
    assert contents[0] == contents[1]


def test_statistics_name_no_column_with_personal_data(tmp_path):
    assert not set(STATISTICS) & {*UNMASKED, "user_id", "session_id", "event_id", "origin", "user_agent"}
    batch = events([1], user_id=pa.array(["token-of-a-user"]), query=pa.array(["a search"]))
    (file,) = write(tmp_path, [batch])
    assert set(file.stats["minValues"]) <= set(STATISTICS)
    assert set(file.stats["nullCount"]) == set(STATISTICS)
    with pq.ParquetFile(tmp_path / file.path) as parquet:
        group = parquet.metadata.row_group(0)
        kept = {
            parquet.schema_arrow.names[i]
            for i in range(parquet.metadata.num_columns)
            if group.column(i).is_stats_set
        }
    assert kept == set(STATISTICS)


def test_statistics_are_cut_outwards_over_all_row_groups(tmp_path):
    early, late = (dt.timedelta(microseconds=us) for us in (1_000_001, 7_000_999))
    times = pa.array([MIDNIGHT + late, MIDNIGHT + early, None], ENRICHED_SCHEMA.field("event_time").type)
    batch = events([0, 0, 0], event_time=times)
    (file,) = write(tmp_path, [batch], rows_per_group=1)
    assert file.stats == {
        "numRecords": 3,
        "minValues": {"event_time": "2026-01-05T00:00:01.000Z", "origin_position": 0},
        "maxValues": {"event_time": "2026-01-05T00:00:07.001Z", "origin_position": 2},
        "nullCount": {"event_time": 1, "ingest_time": 3, "origin_position": 0},
    }


def test_no_rows_give_no_file(tmp_path):
    assert write(tmp_path / "lake", [events([])]) == []
    assert not (tmp_path / "lake").exists()


def test_closing_again_returns_the_same(tmp_path):
    writer = PartitionedWriter(tmp_path, partition="event_date", name="a")
    writer.write(events([1, 30]))
    assert writer.close() == writer.close()


def test_memory_and_open_files_stay_bounded_over_thousands_of_dates(tmp_path, monkeypatch):
    most_open = most_rows = 0

    class Watched(write_lake._OpenFile):
        def write(self, table, rows_per_group):
            nonlocal most_open, most_rows
            most_open = max(most_open, len(writer._open))
            super().write(table, rows_per_group)

    monkeypatch.setattr(write_lake, "_OpenFile", Watched)
    writer = PartitionedWriter(
        tmp_path, partition="event_date", name="a", rows_per_group=300, open_partitions=8
    )
    columns = ["event_id", "event_date", "user_agent"]
    for i in range(7):
        agents = pa.array([f"agent {i} {n}" for n in range(100)])
        batch = events([24 * (i * 100 + n) for n in range(100)], user_agent=agents)
        writer.write(batch.select(columns))
        most_rows = max(most_rows, writer._rows)
        if len(writer._buffer) == 1 and writer._rows > 100:
            waiting = writer._buffer[0]
            assert len(waiting.column("user_agent").dictionary) == waiting.num_rows
            assert waiting.get_total_buffer_size() < 2 * waiting.nbytes
    files = writer.close()
    assert most_open <= 8 and most_rows <= 300
    assert len(files) == sum(f.rows for f in files) == 700


def test_large_rows_are_flushed_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(write_lake, "_BUFFER_BYTES", 100_000)
    writer = PartitionedWriter(tmp_path, partition="event_date", name="a")
    for hour in (1, 2, 30, 3):
        writer.write(events([hour], extra=pa.array(["x" * 60_000])))
        assert writer._bytes < 100_000
    assert [f.rows for f in writer.close()] == [3, 1]


def test_what_can_not_be_stored_is_refused(tmp_path):
    writer = PartitionedWriter(tmp_path, partition="event_date", name="a")
    with pytest.raises(ValueError, match="no column event_date of type date32"):
        writer.write(pa.record_batch({"event_date": ["2026-01-05"]}))
    writer.write(events([1]))
    with pytest.raises(ValueError, match="event_date is null in 1 rows"):
        writer.write(events([1, 2], event_date=pa.array([None, dt.date(2026, 1, 5)], pa.date32())))
    with pytest.raises(ValueError, match=r"other columns than the file, or another order: \['browser'\]"):
        writer.write(events([1]).select([n for n in ENRICHED_SCHEMA.names if n != "browser"]))
    assert [f.rows for f in writer.close()] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "name is '../up'; use letters"),
        ({"name": "a", "compression": "gzip"}, "compression is 'gzip'; use zstd, snappy or none"),
        ({"name": "a", "rows_per_group": 0}, "rows_per_group is 0"),
        ({"name": "a", "open_partitions": 0}, "open_partitions 0"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        PartitionedWriter(tmp_path, partition="event_date", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("room", [2, 3_000])
def test_a_full_disk_leaves_no_half_file(tmp_path, room):
    writer = PartitionedWriter(tmp_path, partition="event_date", name="a")
    writer.write(
        events([1] * 500 + [30] * 500, extra=pa.array([str(random.Random(i).random()) for i in range(1_000)]))
    )
    with (
        pytest.raises(
            OutputError, match=r"event_date=2026-01-05/part-a\.parquet can't be written: File too large"
        ),
        files_of_at_most(room),
    ):
        writer.close()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_giving_up_leaves_nothing(tmp_path):
    writer = PartitionedWriter(tmp_path, partition="event_date", name="a", rows_per_group=2)
    writer.write(events([1, 2, 3]))
    writer.write(events([4]))
    writer.discard()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
