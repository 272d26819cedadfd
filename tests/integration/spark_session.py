"""A real Spark with Delta, and what it reads.

Run as a script by an interpreter that has pyspark, and knows nothing of headrace: ``spark_session.py JARS`` reads a JSON object
{name: [format, folder]} from standard input, and prints {name: {"types": {column: type}, "rows": [[…], …]}}.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

PYSPARK = "3.5.7"
DELTA = "3.3.2"
"""Made for Spark 3.5."""


def read_by_spark(tables: Mapping[str, tuple[str, Path]], scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns types and rows of folders as Spark reads them; installs Spark first if it isn't there.

    Rows are lists of plain values in the order of the columns' names: times as microseconds since 1970 in UTC, dates and decimals
    as text, structs as objects.

    Args:
        tables: name to format (``delta`` or ``parquet``) and folder.
        scratch: for what Spark writes meanwhile.
    """
    from headrace.runners.servers.install import install, run, tool
    from headrace.runners.servers.maven import jars

    def build(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, f"pyspark=={PYSPARK}"]
        run(pip, what="installing pyspark", cwd=folder)

    tool("java", "Spark")
    pyspark = install(f"pyspark-{PYSPARK}", build, "350 MB by pip, two minutes")
    pom = Path(__file__).with_name("spark-delta-pom.xml")
    delta = jars("spark-delta", DELTA, str(pom), "8 MB by Maven")
    done = subprocess.run(
        [sys.executable, __file__, ",".join(str(jar) for jar in sorted(delta.glob("*.jar")))],
        input=json.dumps({name: [form, str(folder)] for name, (form, folder) in tables.items()}),
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
        env={k: v for k, v in os.environ.items() if not k.startswith("SPARK_")}
        | {"PYTHONPATH": str(pyspark)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def plain(value: Any) -> Any:
    """Returns a value of Python as JSON holds it."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list):
        return [plain(each) for each in value]
    if hasattr(value, "asDict"):
        value = value.asDict()
    return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def _main(jars: str) -> None:
    from pyspark.sql import SparkSession, functions  # type: ignore[import-not-found]

    settings = {
        "spark.jars": jars,
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "America/New_York",
        "spark.sql.shuffle.partitions": "1",
        "spark.databricks.delta.snapshotPartitions": "1",
    }
    builder = SparkSession.builder.master("local[1]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    found = {}
    for name, (form, folder) in json.load(sys.stdin).items():
        frame = spark.read.format(form).load(folder)
        types = dict(sorted(frame.dtypes))
        columns = [
            functions.expr(f"unix_micros({column})").alias(column) if type_ == "timestamp" else column
            for column, type_ in types.items()
        ]
        found[name] = {"types": types, "rows": [plain(list(row)) for row in frame.select(columns).collect()]}
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1])
