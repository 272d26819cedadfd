"""Comparisons as text for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from headrace.pipelines.verify.comparison import ColumnDifference, TableComparison

if TYPE_CHECKING:
    from headrace.pipelines.verify.compare_outputs import OutputComparison
    from headrace.pipelines.verify.parity_report import ParityReport

_WIDEST_ROW = 200


def describe_outputs(found: "OutputComparison") -> str:
    """Returns a report: a line a table, under it what differs, at the end the verdict."""
    lines = [f"A  {found.a}", f"B  {found.b}", "", *describe_tables(found.tables)]
    for side, other, tables in (("A", "B", found.only_in_a), ("B", "A", found.only_in_b)):
        for name, rows in tables.items():
            what = "no difference, as it has no rows" if not rows else counted(rows, "row")
            lines.append(f"{name}  only in {side}: {other} has no such table ({what})")
    lines += [f"{name}  not compared: a run's own books" for name in found.not_compared]
    differing = sum(not table.equal for table in found.tables)
    differing += sum(bool(rows) for side in (found.only_in_a, found.only_in_b) for rows in side.values())
    total = len(found.tables) + len(found.only_in_a) + len(found.only_in_b)
    verdict = (
        f"Equal: {counted(total, 'table')}"
        if found.equal
        else f"Different: {differing} of {counted(total, 'table')}"
    )
    return "\n".join([*lines, "", verdict])


def describe_parity(report: "ParityReport") -> str:
    """Returns a report: what was run, a line a table, under it what differs, at the end the verdict."""
    found, plan = report.found, report.plan
    firings: Counter[str] = Counter()
    for of_table in found.firings.values():
        firings.update(of_table)
    delayed = f"{plan['delayed']:,} behind the watermark, by up to {plan['largest_disorder_seconds']:.1f} s"
    lines = [
        f"{counted(report.records, 'record')} as a batch and, disturbed, as a stream on {report.runner} (seed {report.seed})",
        f"  sent       {report.sent:,} in {plan['deliveries']} deliveries and {counted(plan['files'], 'file')}",
        f"  shuffled   {plan['shuffled']:,}; {delayed}",
        f"  repeated   {counted(plan['repeated'], 'record')}, {plan['copies']:,} times",
        f"  settings   {', '.join(f'{name} {value}' for name, value in report.settings.items())}",
        f"  windows    fired {', '.join(f'{firings[t]:,} {t}' for t in ('early', 'on_time', 'late', 'final'))}",
    ]
    if report.unreadable:
        lines.append(
            f"  unreadable {report.unreadable:,} more records of the files, which can't be sent and are not compared"
        )
    if found.conflicts:
        lines.append(
            f"  conflicts  {counted(found.conflicts, 'id')} with more than one content, which are not compared:"
        )
        lines += [
            f"    {each['event_id']}  batch {each['batch'] or '-'}  stream {each['stream'] or '-'}"
            for each in found.examples_of_conflicts
        ]
    lines += ["", *describe_tables(found.tables, "batch", "stream")]
    if found.one_sided_conflicts:
        lines.append(
            f"conflicts  DIFFERENT  {counted(found.one_sided_conflicts, 'id')} in conflict on one side only"
        )
    for what, tables in (("rows came too late", found.late), ("windows are not final", found.unfinished)):
        lines += [f"metrics/{name}  DIFFERENT  {number:,} {what}" for name, number in tables.items()]
    lines += [f"there is no {name}" for name in found.missing]
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    verdict = "Parity" if report.equal else f"No parity; both outputs are in {report.work}"
    return "\n".join([*lines, "", f"{verdict} ({times})"])


def describe_tables(tables: list[TableComparison], a: str = "A", b: str = "B") -> Iterator[str]:
    """Yields the lines of some tables.

    Args:
        a, b: what the sides are called.
    """
    width = max((len(table.name) for table in tables), default=0)
    for table in tables:
        rows = counted(table.rows_a, "row")
        if table.rows_a != table.rows_b:
            rows = f"{table.rows_a:,} rows in {a}, {table.rows_b:,} in {b}"
        yield f"{table.name:<{width}}  {'equal    ' if table.equal else 'DIFFERENT'}  {rows}"
        yield from (f"  {line}" for line in _details(table, a, b))


def counted(number: int, what: str) -> str:
    """Returns a number with its noun."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _details(table: TableComparison, a: str, b: str) -> Iterator[str]:
    if not table.equal and table.key:
        yield f"key: {', '.join(table.key)}"
    sides = (
        (a, table.only_in_a, table.examples_only_in_a, table.columns_only_in_a, table.repeated_keys_a),
        (b, table.only_in_b, table.examples_only_in_b, table.columns_only_in_b, table.repeated_keys_b),
    )
    for side, rows, examples, columns, repeated in sides:
        if columns:
            yield f"columns only in {side}: {', '.join(columns)}"
        if repeated and not table.equal:
            yield f"{counted(repeated, 'key')} in {side} {'stand' if repeated > 1 else 'stands'} in more than one row"
        if rows:
            yield f"only in {side}: {counted(rows, 'row')}"
            yield from (f"    {_row(example)}" for example in examples)
    for column, (type_a, type_b) in table.other_types.items():
        yield f"{column}: {type_a} in {a}, {type_b} in {b}; its values are not compared"
    for column, difference in table.columns.items():
        yield from _column(column, difference, a, b)
    if table.ignored and not table.equal:
        yield f"not compared: {', '.join(table.ignored)}"
    yield from table.notes


def _column(name: str, found: ColumnDifference, a: str, b: str) -> Iterator[str]:
    parts = []
    if found.cells:
        most = "" if found.largest_absolute is None else f", by {found.largest_absolute:.6g} at most"
        share = "" if found.largest_relative is None else f" ({100 * found.largest_relative:.3g} %)"
        parts.append(
            f"{counted(found.cells, 'cell')} {'differ' if found.cells > 1 else 'differs'}{most}{share}"
        )
    if found.within_tolerance:
        parts.append(f"{counted(found.within_tolerance, 'cell')} within the tolerance")
    yield f"{name}: {'; '.join(parts)}"
    for example in found.examples:
        yield f"    {_row(example['key'])}: {a} {_cell(example['a'])}, {b} {_cell(example['b'])}"


def _row(cells: Mapping[str, str | None]) -> str:
    text = " ".join(f"{name}={_cell(cell)}" for name, cell in cells.items())
    return text if len(text) <= _WIDEST_ROW else text[: _WIDEST_ROW - 1] + "…"


def _cell(cell: str | None) -> str:
    """Returns a cell on one line: what it holds must not steer the terminal."""
    if cell is None:
        return "null"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)
