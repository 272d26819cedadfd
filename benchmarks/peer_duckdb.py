"""The DuckDB peer: one SQL script that does the work of ``headrace run batch`` as far as SQL does.

The script is generated from the families' JSON Schemas: one pass over the JSON of each family with ``json_type`` for validation
and ``json_extract_string`` for the values, regular expressions for patterns and masks, ``row_number`` for duplicates on a narrow
table, ``COPY … PARTITION_BY`` for the lake. ``--print-sql`` shows it.

Differences from ours, nearly all in the peer's favour:

- verdicts have no pointer or message and are not exact: ``json_valid`` takes NaN and Infinity, corner cases of formats and numbers
  differ; lines that are no UTF-8 are skipped by the reader and counted from its list of rejects;
- the quarantine holds no sealed document; card numbers are not checked by Luhn; tokens are salted SHA-256, not keyed BLAKE2;
- browser, system and bot flag are a CASE over distinct user agents, not ua-parser; no country from the address;
- a duplicate is told from a conflict by the line's text, not by the canonical event;
- JSON columns keep the order of their keys; unnamed fields are kept for ``x-rest`` and the top level only;
- no ledger, manifest or Delta commit; a killed run starts over.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.rowwise import CATEGORIES, DAY, LEEWAY, micros_of
from headrace.schemas.columns import EVENT_SCHEMA, JSON_COLUMNS, MONEY
from headrace.schemas.registry import DETECT_ORDER, Field, Registry, Schema

EMAIL = r"[A-Za-z0-9._+-]+(@|%40)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
CARD = r"\d(?:[ -]?\d){12,18}"
UUID = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
DATE_TIME = r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
VERSION = r"^\d{1,9}\.\d{1,9}\.\d{1,9}$"
TYPES = {
    "string": ("VARCHAR",),
    "number": ("BIGINT", "UBIGINT", "HUGEINT", "DOUBLE"),
    "integer": ("BIGINT", "UBIGINT", "HUGEINT"),
    "boolean": ("BOOLEAN",),
    "object": ("OBJECT",),
    "array": ("ARRAY",),
    "null": ("NULL",),
}
ANY = tuple(name for names in TYPES.values() for name in names)


def script(
    source: str, output: Path, now: datetime, threads: int = 1, registry: Registry | None = None
) -> str:
    """Returns the whole job as one SQL script; it reads ``source`` and writes below ``output``."""
    registry = registry or Registry.default()
    families = [registry.get(name) for name in DETECT_ORDER if name in registry.names()]
    at = micros_of(now)
    parts = [
        f"set threads = {threads}; set timezone = 'UTC'; set preserve_insertion_order = true;",
        _read(source, families),
        *(_family(number, schema) for number, schema in enumerate(families)),
        "create temp table events as "
        + " union all by name ".join(f"from family_{n}" for n in range(len(families)))
        + ";",
        *(f"drop table family_{n};" for n in range(len(families))),
        _dedupe(at),
        _enrich(),
        _write(output),
    ]
    return "\n\n".join(parts) + "\n"


def run(source: str, output: Path, now: datetime, threads: int = 1) -> None:
    """Runs the script in memory; DuckDB's own limit is 80 % of the machine's memory, then it spills."""
    for folder in ("events", "quarantine", "metrics/minutes"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as spill, duckdb.connect() as connection:
        connection.execute(f"set temp_directory = {_text(spill)}")
        connection.execute(script(source, output, now, threads))


def _read(source: str, families: list[Schema]) -> str:
    keys = sorted({key for schema in families for keys in schema.detect for key in keys})
    cases = " ".join(
        "when "
        + " and ".join(f"t[{keys.index(key) + 1}] is not null" for key in wanted)
        + f" then {_text(schema.name)}"
        for schema in families
        for wanted in schema.detect
    )
    return f"""create temp table lines as
with raw as (
  select line, row_number() over () as position
  from read_csv({_text(source)}, header = false, delim = '\\x01', quote = '', escape = '', auto_detect = false,
    max_line_size = 10000000, store_rejects = true, columns = {{'line': 'VARCHAR'}})
), typed as (
  select line, position, json_valid(line) as valid,
    case when valid then json_type(line, {_list(f'$."{key}"' for key in keys)}) end as t
  from raw
)
select line, position, case when not coalesce(valid, false) then 'malformed' {cases} else 'unknown_schema' end as family
from typed;
create temp table rejects as
select position, 'decode' as stage, family as reason, null::varchar as event_id, null::varchar as event_type from lines
where family in ('malformed', 'unknown_schema')
union all select line::bigint, 'decode', 'malformed', null, null from reject_errors;"""


def _family(number: int, schema: Schema) -> str:
    nodes = list(_nodes(schema.document, (), True))
    objects = [(path, node, needed) for path, node, needed in nodes if "x-column" not in node and path]
    fields = schema.fields
    rest = [path for path, node, _ in nodes if node.get("x-rest")]
    texts = [f.path for f in fields] + rest
    types = [f.path for f in fields] + [path for path, _, _ in objects]
    checks = [_object_check(types.index(path) + 1, path, node, needed) for path, node, needed in objects]
    checks += [_leaf_check(n + 1, field) for n, field in enumerate(fields)]
    checks += _conditions(schema, types)
    checks += [
        f"len(list_filter(coalesce(json_keys(line, {_text(_path(path))}), []), "
        f"lambda k: k not in {_tuple(node['properties'])})) = 0"
        for path, node, _ in nodes
        if node.get("additionalProperties") is False
    ]
    columns = {f.column: _value(texts.index(f.path) + 1, f) for f in fields if "/" not in f.column}
    inner = [
        (f.column.partition("/")[2], _value(texts.index(f.path) + 1, f)) for f in fields if "/" in f.column
    ]
    if inner:
        pairs = ", ".join(f"{_text(key)}, {value}" for key, value in inner)
        columns["properties"] = _scrub(
            f"nullif(json_merge_patch('{{}}', json_object({pairs}))::varchar, '{{}}')"
        )
    for path in rest:
        named = [p[-1] for p, _, _ in nodes if p and p[:-1] == path]
        columns["properties"] = _scrub(_without(f"x[{texts.index(path) + 1}]", named))
    tops = [path[0] for path, _, _ in nodes if len(path) == 1]
    columns["extra"] = _scrub(_without("line", tops))
    selected = ",\n    ".join(f"{value} as {name}" for name, value in columns.items())
    version = next((texts.index(f.path) + 1 for f in fields if f.column == "schema_version"), None)
    major = _text(schema.version.partition(".")[0])
    known = (
        f"split_part(x[{version}], '.', 1) = {major} or not regexp_matches(x[{version}], '{VERSION}')"
        if version
        else "true"
    )
    event_id = "lower(event_id)" if "event_id" in columns else "null::varchar"
    star = "* exclude (line, ok, x, event_id)" if "event_id" in columns else "* exclude (line, ok, x)"
    return f"""create temp table checked as
with typed as (
  select line, position,
    json_type(line, {_list(map(_path, types))}) as t,
    json_extract_string(line, {_list(map(_path, texts))}) as x
  from lines where family = {_text(schema.name)}
)
select line, position, x, coalesce({known}, true) as known, coalesce({" and ".join(checks)}, false) as ok from typed;
insert into rejects select position, case when known then 'validate' else 'decode' end,
  case when known then 'invalid' else 'unknown_schema' end, null, null
from checked where not (ok and known);
create temp table family_{number} as
select {star}, {event_id} as event_id, hash(line) as content, {_text(schema.key)} as schema from (
  select line, position, ok, x,
    {selected}
  from checked where ok and known
);
drop table checked;"""


def _nodes(node: Any, path: tuple[str, ...], needed: bool) -> Iterator[tuple[tuple[str, ...], Any, bool]]:
    yield path, node, needed
    if "x-column" not in node:
        for name, child in node.get("properties", {}).items():
            yield from _nodes(child, (*path, name), needed and name in node.get("required", ()))


def _allowed(node: Any) -> tuple[str, ...]:
    stated = node.get("type")
    if stated is None:
        return ANY
    return tuple(t for name in ([stated] if isinstance(stated, str) else stated) for t in TYPES[name])


def _object_check(n: int, path: tuple[str, ...], node: Any, needed: bool) -> str:
    check = f"t[{n}] = 'OBJECT'"
    return check if needed else f"(t[{n}] is null or {check})"


def _leaf_check(n: int, field: Field) -> str:
    node, x = field.schema, f"x[{n}]"
    checks = [f"t[{n}] in {_tuple(_allowed(node))}"]
    text = []
    if "enum" in node:
        text.append(f"{x} in {_tuple([v for v in node['enum'] if v is not None])}")
    if "pattern" in node:
        text.append(f"regexp_matches({x}, {_text(node['pattern'])})")
    if node.get("minLength"):
        text.append(f"length({x}) >= {node['minLength']}")
    if node.get("format") == "uuid":
        text.append(f"regexp_matches({x}, {_text(UUID)})")
    if node.get("format") == "date-time":
        text.append(f"regexp_matches({x}, {_text(DATE_TIME)}) and try_cast({x} as timestamptz) is not null")
    if text:
        checks.append(f"(t[{n}] <> 'VARCHAR' or {' and '.join(text)})")
    if "minimum" in node:
        checks.append(f"(t[{n}] in ('VARCHAR', 'NULL') or try_cast({x} as double) >= {node['minimum']})")
    if node.get("x-decimal"):
        checks.append(f"(t[{n}] = 'NULL' or try_cast({x} as decimal(38, 9)) is not null)")
    check = " and ".join(checks)
    return f"({check})" if field.required else f"(t[{n}] is null or ({check}))"


def _conditions(schema: Schema, types: list[tuple[str, ...]]) -> list[str]:
    checks = []
    for rule in schema.document.get("allOf", ()):
        ((name, test),) = rule["if"]["properties"].items()
        wanted = " and ".join(f"t[{types.index((key,)) + 1}] is not null" for key in rule["then"]["required"])
        field = [f.path for f in schema.fields].index((name,)) + 1
        checks.append(f"(x[{field}] <> {_text(test['const'])} or ({wanted}))")
    return checks


def _value(n: int, field: Field) -> str:
    x = f"x[{n}]"
    column = field.column.partition("/")[0]
    if column in ("event_time",):
        return f"{x}::timestamptz"
    if "/" not in field.column and EVENT_SCHEMA.field(column).type == MONEY:
        return f"{x}::decimal(38, 9)"
    if column == "quantity":
        return f"{x}::bigint"
    if field.pii == "token":
        return f"substr(sha256('benchmarks' || {x}), 1, 32)"
    if field.pii == "ip":
        shortened = f"regexp_replace({x}, '^(\\d+\\.\\d+\\.\\d+)\\.\\d+$', '\\1.0')"
        return f"regexp_replace({shortened}, '^(([0-9a-fA-F]+:){{3}}).*$', '\\1:')"
    if field.pii in ("url", "text") or column in JSON_COLUMNS:
        return _scrub(x)
    return x


def _scrub(x: str) -> str:
    masked = (
        f"regexp_replace(regexp_replace({x}, {_text(EMAIL)}, '[email]', 'g'), {_text(CARD)}, '[card]', 'g')"
    )
    return f"case when regexp_matches({x}, '@|%40|\\d[ -]?\\d{{3}}[ -]?\\d{{4}}[ -]?\\d{{4}}') then {masked} else {x} end"


def _without(x: str, keys: list[str]) -> str:
    """Removes the keys from a JSON object (RFC 7396); null if nothing is left."""
    patch = json.dumps(dict.fromkeys(keys))
    return f"nullif(json_merge_patch({x}, {_text(patch)})::varchar, '{{}}')"


def _dedupe(now: int) -> str:
    return f"""insert into rejects
select position, 'stale', case when event_time < make_timestamptz({now - DAY}) then 'stale' else 'future' end, null, null
from events where event_time < make_timestamptz({now - DAY}) or event_time > make_timestamptz({now + LEEWAY});
create temp table ids as
select position, event_id is null as generated,
  row_number() over (partition by coalesce(event_id, content::varchar) order by position) as nth,
  content <> first_value(content) over (partition by coalesce(event_id, content::varchar) order by position) as differs
from events where event_time between make_timestamptz({now - DAY}) and make_timestamptz({now + LEEWAY});
insert into rejects
select position, 'dedupe', case when differs then 'duplicate_conflict' else 'duplicate' end, event_id, event_type
from ids join events using (position) where not generated and nth > 1;"""


def _enrich() -> str:
    categories = " ".join(f"when {_text(kind)} then {_text(name)}" for kind, name in CATEGORIES.items())
    return f"""create temp table agents as
select user_agent, case when user_agent ilike '%bot%' or user_agent ilike '%crawl%' or user_agent ilike '%spider%' or
    user_agent ilike 'curl%' or user_agent ilike 'wget%' or user_agent ilike '%headless%' then true else false end as is_bot,
  case when contains(user_agent, 'Edg') then 'Edge' when contains(user_agent, 'OPR') then 'Opera'
    when contains(user_agent, 'Firefox') then 'Firefox' when contains(user_agent, 'Chrome') then 'Chrome'
    when contains(user_agent, 'Safari') then 'Safari' else 'Other' end as browser,
  case when contains(user_agent, 'Windows') then 'Windows' when contains(user_agent, 'Android') then 'Android'
    when regexp_matches(user_agent, 'iPhone|iPad') then 'iOS' when contains(user_agent, 'Mac OS X') then 'Mac OS X'
    when contains(user_agent, 'Linux') then 'Linux' else 'Other' end as os,
  case when contains(user_agent, 'iPad') or contains(user_agent, 'Tablet') then 'tablet'
    when contains(user_agent, 'Mobi') then 'mobile' else 'desktop' end as device
from (select distinct user_agent from events where user_agent is not null);
create temp table lake as
select e.* exclude (content, device_type, event_id),
  coalesce(event_id, md5(content::varchar || ids.nth)::uuid::varchar) as event_id, ids.generated as id_generated,
  coalesce(device_type, device) as device_type, browser, os, is_bot,
  case event_type {categories} else 'other' end as event_category,
  case event_type when 'purchase' then coalesce(amount, (price * coalesce(quantity, 1))::decimal(38, 9))
    when 'refund' then -abs(coalesce(amount, (price * coalesce(quantity, 1))::decimal(38, 9))) end as revenue,
  event_time::date as event_date
from events e join ids using (position) left join agents using (user_agent)
where ids.generated or ids.nth = 1;
drop table events;
insert into rejects select position, 'filter', 'filtered', event_id, event_type from lake
where event_type = 'purchase' and price <= 0;
delete from lake where event_type = 'purchase' and price <= 0;"""


def _write(output: Path) -> str:
    return f"""copy lake to {_text(output / "events")}
  (format parquet, partition_by (event_date), compression snappy, overwrite_or_ignore);
copy rejects to {_text(output / "quarantine" / "part.parquet")} (format parquet);
copy (
  select time_bucket(interval 1 minute, event_time) as window_start, event_type, currency, count(*) as events,
    count(distinct user_id) as users, sum(revenue) as revenue
  from lake group by all
) to {_text(output / "metrics" / "minutes" / "part.parquet")} (format parquet);"""


def _path(parts: tuple[str, ...]) -> str:
    return "$" + "".join(f'."{part}"' for part in parts)


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _list(values: Any) -> str:
    return "[" + ", ".join(map(_text, values)) + "]"


def _tuple(values: Any) -> str:
    return "(" + ", ".join(map(_text, values)) + ")"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--now", type=datetime.fromisoformat, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print-sql", action="store_true", help="print the script instead of running it")
    given = parser.parse_args(arguments)
    if given.print_sql:
        print(script(given.input, given.output, given.now, given.threads))
    else:
        run(given.input, given.output, given.now, given.threads)


if __name__ == "__main__":
    main()
