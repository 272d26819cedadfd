"""Events of a web shop, as they should be and as they came: some damaged in ways that fixes mend."""

import json
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from headrace.pipelines.replay.fixes import Fix, load_fixes
from headrace.schemas.registry import Registry
from headrace.simulator.simulate import simulate

FIXES = """
fixes:
  - name: trailing comma
    where: reason = 'malformed_json'
    steps:
      - replace: record
        pattern: ',}$'
        with: '}'
  - name: euro sign
    where: pointer = '/properties/price'
    steps:
      - replace: /properties/price
        pattern: '^€'
        with: ''
  - name: uid
    where: stage IN ('decode', 'validate')
    steps:
      - rename: /uid
        to: /user_id
"""


def write_events(folder: Path, events: int = 1200, span: str = "55m") -> tuple[Path, Path]:
    """Writes ``good.jsonl`` and ``bad.jsonl`` of the same events, all with ids of their own; about one in seven is damaged."""
    lines = b"".join(
        simulate(events, 5, families=("commerce", "behaviour"), fault_rate=0.0, span=span)
    ).splitlines()
    bad = [_damaged(i, line) for i, line in enumerate(lines)]
    for name, found in (("good", lines), ("bad", bad)):
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(found) + b"\n")
    return folder / "good.jsonl", folder / "bad.jsonl"


def _damaged(number: int, line: bytes) -> bytes:
    document = json.loads(line)
    if number % 10 == 3 and "price" in document.get("properties", {}):
        document["properties"]["price"] = "€" + str(document["properties"]["price"])
    elif number % 20 == 5:
        document["uid"] = document.pop("user_id")
    elif number % 50 == 7:
        return line[:-1] + b",}"
    else:
        return line
    return json.dumps(document, ensure_ascii=False).encode()


def load(folder: Path) -> list[Fix]:
    path = folder / "fixes.yaml"
    path.write_text(FIXES)
    return load_fixes(path, Registry.default())


def rows_of(out: Path, name: str, *but: str) -> list[str]:
    """Returns the rows of a Delta table of an output as texts, sorted, without the columns ``but``."""
    table: pa.Table = DeltaTable(str(out / name)).to_pyarrow_table()
    return sorted(map(str, table.drop_columns([n for n in but if n in table.column_names]).to_pylist()))
