"""Lakes and warehouses, as they lie, read by a real Spark: with Delta and as plain Parquet folders."""

import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from headrace.pipelines.nightly.nightly_tables import TABLES
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.integration.spark_session import plain, read_by_spark
from tests.integration.streams import COMMAND

pytestmark = pytest.mark.integration

TYPES = {
    pa.string(): "string",
    pa.binary(): "binary",
    pa.bool_(): "boolean",
    pa.int64(): "bigint",
    pa.int32(): "int",
    pa.int16(): "smallint",
    pa.int8(): "tinyint",
    pa.float64(): "double",
    pa.float32(): "float",
    pa.date32(): "date",
    pa.timestamp("us", "UTC"): "timestamp",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a batch, and a warehouse of its two dates."""
    folder = tmp_path_factory.mktemp("spark-reads")
    simulation = simulate(3000, 71, fault_rate=0.2)
    (folder / "events.jsonl").write_bytes(b"".join(simulation))
    now = simulation.summary.to_dict()["now"]
    Key(folder / "key", create=True)
    batch = f"run batch --input events.jsonl --output lake --key-file key --now {now} --quiet"
    nightly = f"run nightly --lake lake --output warehouse --from 2026-01-04 --to {now[:10]} --timezone Asia/Tokyo --quiet"
    for words in (batch, nightly):
        done = subprocess.run(
            [*COMMAND, *words.split()], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder


def spark_type(type_: pa.DataType) -> str:
    """Returns what Spark calls an Arrow type."""
    if pa.types.is_decimal(type_):
        return f"decimal({type_.precision},{type_.scale})"
    if pa.types.is_list(type_):
        return f"array<{spark_type(type_.value_type)}>"
    if pa.types.is_struct(type_):
        return f"struct<{','.join(f'{field.name}:{spark_type(field.type)}' for field in type_)}>"
    return TYPES[type_]


def expected(table: pa.Table) -> dict[str, Any]:
    """Returns types and rows of a table as :func:`read_by_spark` does."""
    table = table.select(sorted(table.column_names))
    types = {field.name: spark_type(field.type) for field in table.schema}
    for index, (name, type_) in enumerate(types.items()):
        if type_ == "timestamp":
            table = table.set_column(index, name, table[name].cast(pa.int64()))
    return {"types": types, "rows": [plain(list(row.values())) for row in table.to_pylist()]}


def require_equal(found: dict[str, Any], wanted: dict[str, Any], name: str) -> None:
    assert found["types"] == wanted["types"], name
    assert sorted(found["rows"], key=repr) == sorted(wanted["rows"], key=repr), name


def test_spark_reads_the_rows_and_types_of_every_table(folder: Path, tmp_path: Path) -> None:
    tables = {f"lake/{name}" for name in ("events", "quarantine")} | {f"warehouse/{name}" for name in TABLES}
    plain_only = {f"lake/metrics/{name.name}" for name in (folder / "lake" / "metrics").iterdir()}
    asked = {f"{name} by log": ("delta", folder / name) for name in tables}
    asked |= {f"{name} by folder": ("parquet", folder / name) for name in tables | plain_only}
    found = read_by_spark(asked, tmp_path)
    for name in sorted(tables):
        table = DeltaTable(str(folder / name)).to_pyarrow_table()
        assert table.num_rows, name
        wanted = expected(table)
        for way in ("log", "folder"):
            require_equal(found[f"{name} by {way}"], wanted, f"{name} by {way}")
    for name in sorted(plain_only):
        with duckdb.connect() as db:
            db.execute("SET TimeZone = 'UTC'")
            table = db.sql(f"FROM read_parquet('{folder / name}/**/*.parquet')").to_arrow_table()
        assert table.num_rows, name
        require_equal(found[f"{name} by folder"], expected(table), name)
    assert len(plain_only) > 10
    types = {type_ for each in found.values() for type_ in each["types"].values()}
    nested = "array<struct<currency:string,revenue:decimal(38,9)>>"
    assert {"decimal(38,9)", "timestamp", "date", nested, "binary"} <= types
