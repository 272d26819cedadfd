"""Rejects events by rules: SQL predicates over the event's columns."""

from collections import Counter
from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import ENRICHED_SCHEMA
from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import as_type, column
from headrace.transforms.filter_rules import CompiledRule, compile_rules, connect
from headrace.transforms.rejects import no_rejects, rejected

BUSINESS_RULES: Mapping[str, str] = {
    "purchase_price_not_positive": "event_type = 'purchase' AND price <= 0",
}
"""What no valid event does, whatever its schema; the pipelines apply it as the stage "rules"."""


class FilterEvents(StageTransform):
    """Rejects the rows for which a rule is true; the reason is the rule's name, the first that matches in the order given.

    A rule is a DuckDB expression of type BOOLEAN over the columns of ``schema``, such as ``is_bot AND event_type = 'page_view'``;
    false and NULL keep the row. Money compares as decimal, times as UTC. It may not depend on anything but its row: no
    subqueries, aggregates, windows, files, settings, clocks or random numbers, so that a replay gives the same output. Stateless;
    bounded or unbounded; any windowing. Row order and all columns of the accepted rows are unchanged.

    Input: any columns of ``schema``; one that is missing counts as null.
    Output: the rows without a match. ``.rejected``: stage and reason as given here, columns as they are (they are masked by now).

    A rule that fails on a value (such as a cast of text) does not match that row; counted as ``rule_errors``, by row and rule.

    Args:
        rules: name → expression.
        stage: the stage's name in ledger and quarantine.
        schema: columns that rules may name; extend it by :attr:`ProfileTable.schema` to filter by profile.

    Raises:
        ConfigError: a rule is not such an expression; names the rule, DuckDB's message and the nearest column.

    Example:
        >>> kernel = FilterEvents({"robot": "is_bot"}).kernel()
        >>> kernel.setup()
        >>> batch = pa.RecordBatch.from_pydict({"event_type": ["click", "click"], "is_bot": [True, None]})
        >>> accepted, rejected = kernel(batch)
        >>> accepted.num_rows, rejected.column("reason").to_pylist()
        (1, ['robot'])
    """

    def __init__(
        self, rules: Mapping[str, str], *, stage: str = "filter", schema: pa.Schema = ENRICHED_SCHEMA
    ) -> None:
        super().__init__()
        self._rules = compile_rules(rules, schema)
        self._stage = stage

    def kernel(self) -> Kernel:
        return FilterKernel(self._rules, self._stage)


class FilterKernel:
    """The kernel of :class:`FilterEvents`.

    Args:
        rules: from :func:`compile_rules`.
        stage: likewise.
    """

    def __init__(self, rules: list[CompiledRule], stage: str = "filter") -> None:
        self.name = stage
        self.counts: Counter[str] = Counter()
        self._rules = rules
        self._columns = {f.name: f.type for rule in rules for f in rule.columns}
        self._names = pa.array([rule.name for rule in rules], pa.string())
        cases = " ".join(f"WHEN (\n{rule.expression}\n) THEN {i}" for i, rule in enumerate(rules))
        self._query = f"SELECT CAST(CASE {cases} END AS INTEGER) AS rule FROM events"
        self._guarded = [
            f"SELECT TRY((\n{r.expression}\n)) AS matched, TRY((\n{r.expression}\n) IS NULL) IS NULL AS failed FROM events"
            for r in rules
        ]

    def setup(self) -> None:
        """Opens a database in memory without access to anything outside."""
        self._connection = connect()

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        if not self._rules or not batch.num_rows:
            return Outcome(batch, no_rejects())
        matched = self._matched(batch)
        hit = pc.is_valid(matched)
        if not hit.true_count:
            return Outcome(batch, no_rejects())
        reasons = self._names.take(matched.filter(hit))
        lost = rejected(batch.filter(hit), self.name, reasons, masked=True)
        return Outcome(batch.filter(pc.invert(hit)), lost)

    def _matched(self, batch: pa.RecordBatch) -> pa.Array:
        """Returns the number of the first rule that matches, for each row; null where none does."""
        columns = {name: as_type(column(batch, name), type_) for name, type_ in self._columns.items()}
        # DuckDB needs one column to count rows by, even where no rule names any
        columns.setdefault("_row", pa.array(np.zeros(batch.num_rows, np.int8)))
        self._connection.register("events", pa.table(columns))
        try:
            return _column(self._connection.sql(self._query).to_arrow_table(), "rule")
        except (duckdb.DataError, duckdb.ProgrammingError):
            return self._matched_row_by_row(batch.num_rows)
        finally:
            self._connection.unregister("events")

    def _matched_row_by_row(self, rows: int) -> pa.Array:
        """Like the query, where some rule fails on some row: DuckDB's TRY makes that row's result NULL."""
        matched = pa.nulls(rows, pa.int32())
        for i in reversed(range(len(self._rules))):
            table = self._connection.sql(self._guarded[i]).to_arrow_table()
            true = pc.fill_null(_column(table, "matched"), False)
            matched = pc.if_else(true, pa.scalar(i, pa.int32()), matched)
            if failed := _column(table, "failed").true_count:
                self.counts["rule_errors"] += failed
        return matched


def _column(table: pa.Table, name: str) -> pa.Array:
    chunks = table.column(name).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
