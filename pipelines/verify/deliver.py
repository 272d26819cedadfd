"""Putting records into a directory while a stream reads it, a piece whenever it has read the last one."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from headrace.connectors.stream_ledger import StreamTotals
from headrace.connectors.stream_output import FILE
from headrace.pipelines.streaming.stream_task import FINISH, Control
from headrace.pipelines.verify.disturb import Disturbance
from headrace.pipelines.verify.input_records import InputRecords
from headrace.schemas.errors import UntrustedRunError

STALL_SECONDS = 600.0


def file_name(number: int, format: str) -> str:
    """Returns the name of a file of the plan."""
    return f"part-{number:04d}.{'log' if format == 'weblog' else 'jsonl'}"


class Deliverer:
    """Delivers a plan piece by piece; call it again and again with what the stream has committed.

    The next piece comes once the records of all before it are in the ledger, so the stream reads them in the plan's order, and
    its windows fire in between. After the last one the stream is told to finish: it closes all windows and ends.

    Args:
        folder: the directory that the stream reads.
        output: the stream's output.
        format: ``jsonl`` or ``weblog``.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        records: InputRecords,
        plan: Disturbance,
        folder: Path,
        output: Path,
        format: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records, self._plan = records, plan
        self._folder, self._output, self._format = folder, output, format
        self._clock = clock
        self._next = 0
        self._moved = (clock(), 0)
        self._finished = False

    @property
    def delivered(self) -> int:
        """Records that lie in the directory."""
        return self._plan.deliveries[self._next - 1].end if self._next else 0

    def __call__(self, totals: StreamTotals) -> None:
        """Delivers the next piece if its turn has come.

        Raises:
            UntrustedRunError: the stream has read nothing for ten minutes, or more than there is.
        """
        if totals.rows_in > self.delivered:
            raise UntrustedRunError(
                f"the stream counts {totals.rows_in:,} records, and only {self.delivered:,} were delivered; report it as a bug"
            )
        if totals.rows_in != self._moved[1]:
            self._moved = self._clock(), totals.rows_in
        if totals.rows_in == self.delivered and not self._finished:
            self._moved = self._clock(), totals.rows_in
            if self._next < len(self._plan.deliveries):
                self.deliver()
            else:
                self._finish()
        elif self._clock() - self._moved[0] > STALL_SECONDS:
            raise UntrustedRunError(
                f"the stream has stood at {totals.rows_in:,} of {self.delivered:,} delivered records for {STALL_SECONDS:.0f} s and "
                "does not go on; its runner's log may say why"
            )

    def deliver(self) -> None:
        """Puts the next piece into the directory: a file that is renamed once it is whole, or more lines of the last."""
        file, start, end = self._plan.deliveries[self._next]
        numbers = self._plan.record[start:end]
        path = self._folder / file_name(file, self._format)
        content = b"".join(self._records.lines(numbers))
        if path.exists():
            with path.open("ab") as grown:
                grown.write(content)
        else:
            aside = path.with_name(f".{path.name}")
            aside.write_bytes(self._records.file_start(int(numbers[0])) + content)
            os.replace(aside, path)
        self._next += 1

    def _finish(self) -> None:
        job = json.loads((self._output / FILE).read_bytes())["jobs"][-1]["name"]
        Control(self._output / "_control" / job).ask(FINISH)
        self._finished = True
