"""Runs the stages over states in memory, restores an older checkpoint in their midst, and prints what is left of the records.

A program, so that a control run's protection is off in this process only: ``python -m tests.chaos.local_crash FOLDER``.
"""

import json
import sys
from pathlib import Path

from deltalake import DeltaTable

from headrace.connectors.stream_ledger import read_stream_ledger
from headrace.transforms.keys import Key
from tests.chaos.producer import Events
from tests.pipelines.streaming.line_source import LineSource
from tests.pipelines.streaming.local import NOW, NOW_US, FakeFlink, Local, make_task

RECORDS, PER_POLL = 4000, 100


def crash(folder: Path) -> dict[str, object]:
    """Returns rows of the lake, records that they are of, and whether the ledger balances."""
    events = Events(3)
    lines = folder / "lines"
    lines.write_bytes(b"".join(events.next(NOW)[3] + b"\n" for _ in range(RECORDS)))
    Key(folder / "key", create=True)
    source = LineSource(str(lines), NOW, per_poll=PER_POLL)
    flink = FakeFlink()
    local = Local(make_task(folder / "out", source, folder / "key", until_us=NOW_US + 1), seed=5, flink=flink)
    local.run(60)
    saved = local.checkpoint()
    flink.durable = local.now
    local.run(120)
    local.restore(saved)
    flink.durable = local.now
    local.run()
    flink.durable = local.now + 3_600_000_000
    local.settle()
    table = DeltaTable(str(folder / "out" / "events"))
    rows = table.to_pyarrow_table(columns=["origin", "origin_position"])
    records = rows.group_by(["origin", "origin_position"]).aggregate([])
    totals = read_stream_ledger(folder / "out")
    return {
        "rows": rows.num_rows,
        "records": records.num_rows,
        "read": totals.rows_in,
        "balanced": totals.balanced,
    }


if __name__ == "__main__":
    print(json.dumps(crash(Path(sys.argv[1]))))
