"""A source over the lines of a file, dealt to partitions: a stream without a broker."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import pyarrow as pa

from headrace.connectors.stream_source import Poll, Read
from headrace.schemas.columns import RAW_SCHEMA


@cache
def lines_of(path: str) -> list[bytes]:
    return Path(path).read_bytes().splitlines()


@dataclass(frozen=True)
class LineSource:
    """Line i is record i // partitions of partition i % partitions. Reader r owns the partitions p with p % readers == r."""

    path: str
    ingest_time: datetime
    partitions: int = 4
    acknowledged: str = ""
    """A file to which receipts are appended."""
    per_poll: int = 1_000_000
    format: str = "json"

    @property
    def name(self) -> str:
        return f"lines://{Path(self.path).name}"

    def check(self) -> None:
        assert Path(self.path).exists()

    def start(self, readers: int, resume: Mapping[str, int] | None = None) -> list[str]:
        done = resume or {}
        return [
            json.dumps(
                {str(p): done.get(f"lines/{p}", 0) for p in range(self.partitions) if p % readers == r}
            )
            for r in range(readers)
        ]

    def open(self, position: str) -> "LineReader":
        return LineReader(self, json.loads(position))

    def acknowledge(self, receipts: Sequence[str]) -> None:
        if self.acknowledged:
            with open(self.acknowledged, "a") as file:
                file.writelines(receipt + "\n" for receipt in receipts)


class LineReader:
    def __init__(self, source: LineSource, next_: dict[str, int]) -> None:
        self._source, self._next = source, next_
        lines = lines_of(source.path)
        self._records = {p: lines[int(p) :: source.partitions] for p in next_}

    def poll(self, max_rows: int, timeout_seconds: float) -> Poll:
        left = min(max_rows, self._source.per_poll)
        rows, reads = [], []
        share = max(1, left // len(self._records))
        for p, records in self._records.items():
            first = self._next[p]
            taken = records[first : first + min(share, left)]
            left -= len(taken)
            origin = f"lines/{p}"
            rows += [
                {
                    "raw": raw,
                    "origin": origin,
                    "origin_position": first + i,
                    "ingest_time": self._source.ingest_time,
                    "fault": None,
                }
                for i, raw in enumerate(taken)
            ]
            if taken:
                reads.append(Read(origin, first, first + len(taken), len(taken)))
                self._next = self._next | {p: first + len(taken)}
        behind = {f"lines/{p}": len(records) - self._next[p] for p, records in self._records.items()}
        return Poll(
            pa.RecordBatch.from_pylist(rows, schema=RAW_SCHEMA),
            json.dumps(self._next),
            tuple(reads),
            behind,
            receipt=json.dumps([[r.origin, r.next] for r in reads]) if reads else "",
        )

    def close(self) -> None:
        pass
