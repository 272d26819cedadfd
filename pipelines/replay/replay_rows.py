"""The rows of a replay, through the same kernels as a run: selected and fixed, decided, and what came of each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.delta_commit import committed_files
from headrace.connectors.read_quarantine import (
    ROW_SCHEMA,
    Quarantine,
    compile_where,
    matching,
    select_rows,
)
from headrace.connectors.stage import StageWriter, read_stage
from headrace.connectors.write_lake import PartitionedWriter
from headrace.pipelines.definition import Definition
from headrace.pipelines.pane_partials import PanePartials
from headrace.pipelines.replay.fixes import Fix, NotFixable, fix_columns, fix_document
from headrace.schemas.columns import ENRICHED_SCHEMA, EVENT_SCHEMA, RAW_SCHEMA, TIME
from headrace.schemas.errors import ConfigError, UntrustedRunError
from headrace.transforms.base import Kernel
from headrace.transforms.batches import conform, plain
from headrace.transforms.dedupe_records import RECORD, Records, Verdicts, hash_records, resolve, settle
from headrace.transforms.filter_rules import CompiledRule, connect

KEY = ("origin", "origin_position")
"""Tells the rows of a quarantine apart: where each was read."""
_NOT_GENERATED = np.uint32((1 << 31) - 1)

PLACELESS = "without origin or position, so they can't be told apart"
TOO_YOUNG = "younger than the stream may still see copies of"
GONE = "of times whose events went by the retention policy, so their windows can't be made again"

_TAKEN = pa.schema([ROW_SCHEMA.field(name) for name in (*KEY, "ingest_date", "attempt", "stage", "reason")])


@dataclass(frozen=True)
class Selection:
    """Which rows are replayed, and how.

    Args:
        format_of: origin → format of its records, "json" or "weblog".
        newest: rows with an event_time at or after this stay: a copy of theirs may still be on its way; None: none stay.
        oldest: rows with an event_time before this stay: what else was in their windows is gone; None: none stay.
        most_attempts: rows that were rejected so often stay.
    """

    quarantine: Quarantine
    where: str | None
    fixes: Sequence[Fix]
    format_of: Callable[[str], str]
    newest: datetime | None
    oldest: datetime | None
    most_attempts: int


@dataclass
class Outcome:
    """What came of the selected rows."""

    selected: int = 0
    parked: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    taken: pa.Table = field(default_factory=lambda: pa.table({}))
    """Of each row that was taken: ``KEY``, ``ingest_date``, ``attempt``, ``stage`` and ``reason`` as they were."""
    failed: pa.Table = field(default_factory=lambda: ROW_SCHEMA.empty_table())
    """Rows that failed again, with what they failed for now and ``attempt`` counted up."""
    windows: list[tuple[str, pa.RecordBatch]] = field(default_factory=list)
    """Partials of the window tables over the recovered rows, as of :class:`PanePartials`."""

    @property
    def recovered(self) -> int:
        return int(self.taken.num_rows - self.failed.num_rows)


class ReplayRows:
    """Runs one replay's rows; writes the recovered ones with ``lake`` and nothing else but the stage file.

    Args:
        definition: with a key that opens the documents.
        out: the output, whose lake knows the ids that were accepted.
        stage: a file to park rows in.
    """

    def __init__(self, definition: Definition, selection: Selection, out: Path, stage: Path) -> None:
        self._definition = definition
        self._selection = selection
        self._out = out
        self._stage = StageWriter(stage)
        self._kernels: dict[tuple[str, str | None], list[Kernel]] = {}
        self._records: list[Records] = []
        self._taken: list[pa.Table] = []
        self._failed: list[pa.RecordBatch] = []
        self._outcome = Outcome()
        self._connection = connect()
        self._conditions: list[tuple[Fix, CompiledRule | None]] = [
            (fix, None if fix.where is None else compile_where(fix.where)) for fix in selection.fixes
        ]

    def run(self, lake: PartitionedWriter) -> Outcome:
        """Runs the rows.

        Raises:
            ConfigError: the key does not open a document; two rows of the quarantine have the same place.
            UntrustedRunError: rows are missing after a stage.
        """
        with self._stage:
            for batch in select_rows(self._selection.quarantine, self._selection.where):
                self._read(batch)
        self._finish(lake)
        outcome = self._outcome
        outcome.taken = pa.concat_tables(self._taken) if self._taken else _TAKEN.empty_table()
        _require_apart(outcome.taken)
        outcome.failed = self._with_attempts()
        return outcome

    def _read(self, batch: pa.RecordBatch) -> None:
        self._outcome.selected += batch.num_rows
        attempts = pc.fill_null(batch.column("attempt"), 1)
        parked = pc.greater_equal(attempts, self._selection.most_attempts)
        self._outcome.parked += pc.sum(parked).as_py() or 0
        batch = batch.filter(pc.invert(parked))
        placed = pc.and_(*(batch.column(name).is_valid() for name in KEY))
        if lost := batch.num_rows - (pc.sum(placed).as_py() or 0):
            self._outcome.waiting[PLACELESS] += lost
            batch = batch.filter(placed)
        fixes = self._fixes_of(batch)
        sealed = batch.column("document").is_valid().to_numpy(zero_copy_only=False)
        self._read_documents(batch, fixes, np.flatnonzero(sealed))
        self._read_columns(batch, fixes, np.flatnonzero(~sealed))

    def _fixes_of(self, batch: pa.RecordBatch) -> list[list[Fix]]:
        """Returns the fixes of each row."""
        found: list[list[Fix]] = [[] for _ in range(batch.num_rows)]
        for fix, rule in self._conditions:
            hit = np.ones(batch.num_rows, bool) if rule is None else matching(self._connection, rule, batch)
            for row in np.flatnonzero(hit).tolist():
                found[row].append(fix)
        return found

    def _read_documents(
        self, batch: pa.RecordBatch, fixes: list[list[Fix]], rows: npt.NDArray[np.int64]
    ) -> None:
        """Opens and fixes the documents, and runs them through the stages up to masking."""
        by_kind: dict[tuple[str, str | None], tuple[list[int], list[bytes]]] = {}
        sealed, origins = batch.column("document"), batch.column("origin").to_pylist()
        for row in rows.tolist():
            raw, schema = self._definition.key.unseal(sealed[row].as_py()), self._definition.schema
            if fixes[row]:
                try:
                    fixed = fix_document(raw, fixes[row])
                except NotFixable as reason:
                    self._outcome.waiting[str(reason)] += 1
                    continue
                raw, schema = fixed.raw, fixed.schema or schema
            numbers, raws = by_kind.setdefault((self._selection.format_of(origins[row]), schema), ([], []))
            numbers.append(row)
            raws.append(raw)
        for kind, (numbers, raws) in by_kind.items():
            chosen = batch.take(pa.array(numbers, pa.int64()))
            columns = {name: chosen.column(name) for name in ("origin", "origin_position", "ingest_time")}
            done, rejected = (
                conform(columns | {"raw": pa.array(raws, pa.binary())}, RAW_SCHEMA, len(raws)),
                [],
            )
            for kernel in self._before(kind):
                done, lost = kernel(done)
                rejected.append(lost)
                if not done.num_rows:
                    break
            self._keep(chosen, done if done.num_rows else conform({}, EVENT_SCHEMA, 0), rejected)

    def _before(self, kind: tuple[str, str | None]) -> list[Kernel]:
        if kind not in self._kernels:
            format_, schema = kind
            definition = replace(self._definition, schema=None if format_ == "weblog" else schema)
            self._kernels[kind] = definition.before_dedupe(format_, stream=True)
        return self._kernels[kind]

    def _read_columns(
        self, batch: pa.RecordBatch, fixes: list[list[Fix]], rows: npt.NDArray[np.int64]
    ) -> None:
        """Takes rows that were rejected after masking: their columns are the event."""
        if not len(rows):
            return
        chosen = batch.take(pa.array(rows))
        events = chosen.select(EVENT_SCHEMA.names)
        mine = [fixes[row] for row in rows.tolist()]
        if any(mine):
            kept, values = [], []
            for number, (row, own) in enumerate(zip(events.to_pylist(), mine, strict=True)):
                try:
                    values.append(fix_columns(row, own) if own else row)
                except NotFixable as reason:
                    self._outcome.waiting[str(reason)] += 1
                    continue
                kept.append(number)
            events = pa.RecordBatch.from_pylist(values, schema=events.schema)
            chosen = chosen.take(pa.array(kept, pa.int64()))
        columns = dict(zip(events.schema.names, events.columns, strict=True))
        self._keep(chosen, conform(columns, EVENT_SCHEMA, events.num_rows), [])

    def _keep(self, chosen: pa.RecordBatch, done: pa.RecordBatch, rejected: Sequence[pa.RecordBatch]) -> None:
        """Parks the rows that came through, and notes those that failed; rows that are too young stay as they were."""
        lost = sum(batch.num_rows for batch in rejected)
        if done.num_rows + lost != chosen.num_rows:
            raise UntrustedRunError(
                f"{chosen.num_rows:,} rows were replayed, {done.num_rows:,} came through and {lost:,} failed: the stages lost or "
                "made rows. Nothing was changed; report it as a bug"
            )
        for limit, beyond, why in (
            (self._selection.newest, pc.greater_equal, TOO_YOUNG),
            (self._selection.oldest, pc.less, GONE),
        ):
            if limit is None or not done.num_rows:
                continue
            stays = beyond(done.column("event_time"), pa.scalar(limit, TIME))
            if number := pc.sum(stays).as_py():
                self._outcome.waiting[why] += number
                keys = _keys(done.filter(stays))
                done = done.filter(pc.invert(stays))
                chosen = _without(chosen, keys)
        if chosen.num_rows:
            self._taken.append(pa.Table.from_batches([chosen.select(_TAKEN.names)]))
        self._failed += [batch for batch in rejected if batch.num_rows]
        if done.num_rows:
            self._records.append(hash_records(done, 1, self._stage.rows))
            self._stage.write(done)

    def _finish(self, lake: PartitionedWriter) -> None:
        """Decides which ids are new, and runs the rest of the stages."""
        kernels = self._definition.after_dedupe()
        windows = PanePartials(self._definition)
        verdicts = self._verdicts()
        first_row = 0
        for staged in read_stage(self._stage.path):
            batch, lost = settle(staged, verdicts, first_row)
            first_row += staged.num_rows
            if lost.num_rows:
                self._failed.append(lost)
            for kernel in kernels:
                if batch.num_rows:
                    batch, lost = kernel(batch)
                    if lost.num_rows:
                        self._failed.append(lost)
            if batch.num_rows:
                lake.write(batch)
                windows.add(batch)
        self._outcome.windows = list(windows.merged())

    def _verdicts(self) -> Verdicts:
        """Holds the ids against each other and against the lake, whose rows came first."""
        if not self._records:
            return resolve(np.empty(0, RECORD)).verdicts
        mine = np.concatenate(self._records)
        known = [hash_records(batch, 0, 0) for batch in self._known()]
        every = np.concatenate([*known, mine])
        # Ids were made of positions here, so an equal one is the same record, not another occurrence.
        every["split"] &= _NOT_GENERATED
        found = resolve(every)
        return found.verdicts[found.splits == 1]

    def _known(self) -> Iterator[pa.RecordBatch]:
        """Yields the lake's rows with one of the staged ids, of dates on which a copy may lie."""
        ids, dates = [], set()
        for batch in read_stage(self._stage.path):
            ids.append(plain(batch.column("event_id")))
            days = pc.unique(batch.column("event_date").cast(pa.int32())).to_pylist()
            dates |= {day + near for day in days for near in (-1, 0, 1)}
        paths = [str(path) for path in lake_files(self._out, dates)]
        if not paths:
            return
        wanted = pa.table({"event_id": pa.chunked_array(ids)})
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'; SET threads = 2")
            connection.register("wanted", wanted)
            found = connection.sql(
                "SELECT * FROM read_parquet(?, hive_partitioning = false, union_by_name = true) "
                "WHERE event_id IN (SELECT event_id FROM wanted)",
                params=[paths],
            ).to_arrow_table()
        for batch in found.to_batches(max_chunksize=16_384):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield conform(
                {n: c for n, c in columns.items() if n in ENRICHED_SCHEMA.names},
                ENRICHED_SCHEMA,
                batch.num_rows,
            )

    def _with_attempts(self) -> pa.Table:
        """Returns the failed rows as the quarantine has them, each with its attempt."""
        if not self._failed:
            return ROW_SCHEMA.empty_table()
        parts = []
        for batch in self._failed:
            columns = {n: plain(batch.column(n)) for n in batch.schema.names}
            columns["ingest_date"] = columns["ingest_time"].cast(pa.date32())
            parts.append(pa.Table.from_arrays([columns[n] for n in ROW_SCHEMA.names], schema=ROW_SCHEMA))
        failed = pa.concat_tables(parts).drop_columns(["attempt"])
        before = self._outcome.taken.select([*KEY, "attempt"])
        joined = failed.join(before, keys=list(KEY), join_type="inner", use_threads=False)
        if joined.num_rows != failed.num_rows:
            raise UntrustedRunError(
                "a row that failed again is not among those that were replayed; report it as a bug"
            )
        attempt = pc.add(pc.fill_null(joined.column("attempt"), 1), 1).cast(pa.int32())
        joined = joined.set_column(joined.schema.get_field_index("attempt"), "attempt", attempt)
        return joined.select(ROW_SCHEMA.names)


def lake_files(out: Path, days: set[int] | None = None) -> Iterator[Path]:
    """Yields the lake's files, those of some dates (days since 1970) only."""
    root = out / "events"
    wanted = None if days is None else {str(np.datetime64(day, "D")) for day in days}
    for path in committed_files(root):
        date = path.partition("/")[0].removeprefix("event_date=")
        if wanted is None or date in wanted:
            yield root / path


def _require_apart(taken: pa.Table) -> None:
    counted = taken.group_by(list(KEY), use_threads=False).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1))
    if twice.num_rows:
        row = twice.slice(0, 1).to_pylist()[0]
        raise ConfigError(
            f"{twice.num_rows:,} records have several rows in the quarantine (the first: {row['origin']} at "
            f"{row['origin_position']}), so what comes of one can't be told from what comes of the other; select one of them "
            "with --where, for example by its stage"
        )


def _keys(batch: pa.RecordBatch) -> set[tuple[str, int]]:
    return set(zip(*(plain(batch.column(n)).to_pylist() for n in KEY), strict=True))


def _without(chosen: pa.RecordBatch, keys: set[tuple[str, int]]) -> pa.RecordBatch:
    places = zip(*(chosen.column(n).to_pylist() for n in KEY), strict=True)
    return chosen.filter(pa.array([place not in keys for place in places]))


def counts_of(table: pa.Table) -> dict[str, dict[str, int]]:
    """Returns {stage: {reason: rows}}, sorted."""
    grouped = table.group_by(["stage", "reason"], use_threads=False).aggregate([([], "count_all")])
    counts: dict[str, dict[str, int]] = {}
    for row in sorted(grouped.to_pylist(), key=lambda r: (r["stage"], r["reason"])):
        counts.setdefault(row["stage"], {})[row["reason"]] = row["count_all"]
    return counts
