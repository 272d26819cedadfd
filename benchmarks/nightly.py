"""The nightly tables of one date: `headrace run nightly`, and one DuckDB script that makes the same tables, on two cores each.

    python -m benchmarks.nightly [--events 5000000] [--repeat 3] [--work FOLDER]

Both read the Parquet files of one lake (simulated events of 23 hours, written by `headrace run batch`) and write Parquet.
Prints CPU and wall time of whole processes, start-up included, as medians, their ratio, and peak memory. The script's channel
is a short CASE where headrace applies all rules of Google Analytics 4; all other columns are the same,
as tests/pipelines/nightly checks.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median

from benchmarks.measure import Usage, measure

VIEWS = "event_type IN ('page_view', 'product_view')"
FUNNEL = ("page_view", "product_view", "add_to_cart", "purchase")
COLUMNS = (
    "event_time, event_id, user_id, event_type, page_url, referrer, device_type, country, region, is_bot, revenue, currency, "
    "product_id, category, quantity"
)
LISTED = (
    "CASE WHEN count(*) = 1 THEN min(amount) END AS revenue, CASE WHEN count(*) = 1 THEN min(currency) END AS currency, "
    "list({'currency': currency, 'revenue': amount} ORDER BY currency NULLS LAST) AS revenues"
)
"""The columns of money from rows of currency and amount."""
NOTHING = "coalesce(revenues, []) AS revenues"


def script(day: date, start: datetime, end: datetime, gap_seconds: int = 1800) -> list[str]:
    """Returns the statements that make the tables of a date from ``lake``, a table or view; first dates go to ``first_seen``.

    Args:
        start, end: the date's interval, plain UTC as ``lake.event_time`` is.
    """
    d = f"DATE '{day}'"

    def first(column: str, order: str = "arg_min") -> str:
        return f"{order}({column}, n) FILTER (WHERE {column} IS NOT NULL)"

    return [
        "CREATE TABLE IF NOT EXISTS first_seen (date DATE, user_id VARCHAR)",
        f"CREATE OR REPLACE TABLE day AS SELECT {COLUMNS} FROM lake WHERE event_time >= '{start}' AND event_time < '{end}'",
        "CREATE OR REPLACE TABLE before AS SELECT user_id, max(event_time) AS last FROM lake WHERE event_time < "
        f"'{start}' AND event_time >= '{start - timedelta(seconds=gap_seconds)}' GROUP BY user_id",
        "CREATE OR REPLACE TABLE ev AS SELECT *, sum(begins::INT) OVER (PARTITION BY user_id ORDER BY n ROWS UNBOUNDED "
        "PRECEDING) AS s FROM (SELECT *, row_number() OVER w AS n, coalesce(event_time - lag(event_time) OVER w > "
        f"INTERVAL {gap_seconds} SECOND, true) AS begins FROM day WHERE user_id IS NOT NULL "
        "WINDOW w AS (PARTITION BY user_id ORDER BY event_time, event_id))",
        "CREATE OR REPLACE TABLE earned AS SELECT user_id, s, currency, sum(revenue) AS amount FROM ev "
        "WHERE revenue IS NOT NULL GROUP BY ALL",
        f"""CREATE OR REPLACE TABLE user_sessions AS SELECT {d} AS date, a.user_id, session_start, session_end,
        epoch_us(session_end - session_start) / 1e6 AS duration_seconds, events, page_views, unique_pages, entry_page, exit_page,
        purchases, revenue, currency, {NOTHING}, page_views = 1 AND purchases = 0 AS bounce, device_type, country,
        coalesce(channel, 'direct') AS channel, is_bot,
        a.s = 1 AND session_start - b.last <= INTERVAL {gap_seconds} SECOND IS TRUE AS continued
        FROM (SELECT user_id, s, min(event_time) AS session_start, max(event_time) AS session_end, count(*) AS events,
        count(*) FILTER (WHERE {VIEWS}) AS page_views,
        count(DISTINCT split_part(split_part(page_url, '#', 1), '?', 1)) AS unique_pages,
        {first("page_url")} AS entry_page, {first("page_url", "arg_max")} AS exit_page,
        count(*) FILTER (WHERE event_type = 'purchase') AS purchases, {first("device_type")} AS device_type,
        {first("country")} AS country, {first("channel")} AS channel, bool_or(coalesce(is_bot, false)) AS is_bot
        FROM (SELECT *, CASE WHEN referrer LIKE '%google%' THEN 'organic_search' WHEN page_url IS NOT NULL THEN 'direct' END
        AS channel FROM ev) GROUP BY ALL) a LEFT JOIN before b USING (user_id)
        LEFT JOIN (SELECT user_id, s, {LISTED} FROM earned GROUP BY ALL) m USING (user_id, s)""",
        f"""CREATE OR REPLACE TABLE user_daily_metrics AS SELECT {d} AS date, user_id, sessions, visits, events, page_views,
        micros / 1e6 AS time_spent_seconds, micros / 1e6 / sessions AS average_duration_seconds, purchases, revenue, currency,
        {NOTHING} FROM (SELECT user_id, count(*) AS sessions, count(*) FILTER (WHERE NOT continued) AS visits,
        sum(events)::BIGINT AS events, sum(page_views)::BIGINT AS page_views,
        sum(epoch_us(session_end - session_start))::BIGINT AS micros, sum(purchases)::BIGINT AS purchases
        FROM user_sessions GROUP BY ALL)
        LEFT JOIN (SELECT user_id, {LISTED} FROM (SELECT user_id, currency, sum(amount) AS amount FROM earned GROUP BY ALL)
        GROUP BY ALL) USING (user_id)""",
        f"""CREATE OR REPLACE TABLE cube_geo AS SELECT {d} AS date, a.country, a.region, coalesce(s.sessions, 0) AS sessions, users,
        events, page_views, purchases, revenue, currency, {NOTHING} FROM (SELECT country, region, count(*) AS events,
        count(DISTINCT user_id) AS users, count(*) FILTER (WHERE {VIEWS}) AS page_views,
        count(*) FILTER (WHERE event_type = 'purchase') AS purchases FROM day GROUP BY ALL) a
        LEFT JOIN (SELECT country, region, count(*) AS sessions FROM ev WHERE begins GROUP BY ALL) s
        ON a.country IS NOT DISTINCT FROM s.country AND a.region IS NOT DISTINCT FROM s.region
        LEFT JOIN (SELECT country, region, {LISTED} FROM (SELECT country, region, currency, sum(revenue) AS amount FROM day
        WHERE revenue IS NOT NULL GROUP BY ALL) GROUP BY ALL) m
        ON a.country IS NOT DISTINCT FROM m.country AND a.region IS NOT DISTINCT FROM m.region""",
        f"""CREATE OR REPLACE TABLE product_daily AS WITH p AS (SELECT * FROM day WHERE product_id IS NOT NULL AND event_type IN
        ('product_view', 'add_to_cart', 'purchase', 'refund')), c AS (SELECT product_id, category FROM p WHERE category IS NOT NULL
        GROUP BY product_id, category QUALIFY row_number() OVER (PARTITION BY product_id ORDER BY count(*) DESC, category) = 1)
        SELECT {d} AS date, product_id, c.category, currency, count(*) FILTER (WHERE event_type = 'product_view') AS views,
        count(*) FILTER (WHERE event_type = 'add_to_cart') AS add_to_carts,
        count(*) FILTER (WHERE event_type = 'purchase') AS purchases,
        coalesce(sum(quantity) FILTER (WHERE event_type = 'purchase'), 0)::BIGINT AS units,
        count(*) FILTER (WHERE event_type = 'refund') AS refunds, sum(revenue) AS revenue,
        count(DISTINCT user_id) FILTER (WHERE event_type = 'purchase') AS buyers
        FROM p LEFT JOIN c USING (product_id) GROUP BY product_id, c.category, currency""",
        f"""INSERT INTO first_seen SELECT {d}, user_id FROM (SELECT DISTINCT user_id FROM user_daily_metrics)
        WHERE user_id NOT IN (SELECT user_id FROM first_seen WHERE date < {d})""",
        f"CREATE OR REPLACE TABLE user_first_seen AS SELECT * FROM first_seen WHERE date = {d}",
        f"""CREATE OR REPLACE TABLE cohorts AS WITH f AS (SELECT user_id, min(date) AS cohort FROM first_seen WHERE date <= {d}
        GROUP BY ALL) SELECT {d} AS date, cohort, {d} - cohort AS day, users, revenue, currency, {NOTHING} FROM
        (SELECT cohort, count(*) AS users FROM user_daily_metrics JOIN f USING (user_id) GROUP BY ALL) LEFT JOIN
        (SELECT cohort, {LISTED} FROM (SELECT cohort, currency, sum(amount) AS amount FROM earned JOIN f USING (user_id)
        GROUP BY ALL) GROUP BY ALL) USING (cohort)""",
        *_funnel(d),
    ]


def _funnel(d: str) -> list[str]:
    """The default funnel, for days that are not longer than its window: the earliest end of a chain, then back by the latest."""
    kind = "event_type = '{}'"
    reach = [f"r1 AS (SELECT user_id, min(n) AS n FROM ev WHERE {kind.format(FUNNEL[0])} GROUP BY ALL)"]
    reach += [
        f"r{k} AS (SELECT ev.user_id, min(ev.n) AS n FROM ev JOIN r{k - 1} r USING (user_id) WHERE {kind.format(FUNNEL[k - 1])} "
        "AND ev.n > r.n GROUP BY ALL)"
        for k in (2, 3, 4)
    ]
    back = ["b4 AS (SELECT * FROM r4)"]
    back += [
        f"b{k} AS (SELECT ev.user_id, max(ev.n) AS n FROM ev JOIN r{k} r USING (user_id) JOIN b{k + 1} b USING (user_id) "
        f"WHERE {kind.format(FUNNEL[k - 1])} AND ev.n >= r.n AND ev.n < b.n GROUP BY ALL UNION ALL "
        f"SELECT * FROM r{k} WHERE user_id NOT IN (SELECT user_id FROM r{k + 1}))"
        for k in (3, 2, 1)
    ]
    times = [
        f"t{k} AS (SELECT user_id, event_time AS t FROM b{k} JOIN ev USING (user_id, n))"
        for k in (1, 2, 3, 4)
    ]
    steps = []
    for k, name in enumerate(FUNNEL, 1):
        users = [f"(SELECT count(*) FROM t{j})" for j in (1, max(1, k - 1), k, min(4, k + 1))]
        waits = "NULL::DOUBLE"
        if k > 1:
            waits = f"(SELECT median(epoch_us(b.t - a.t)) / 1e6 FROM t{k - 1} a JOIN t{k} b USING (user_id))"
        steps.append(
            f"SELECT {d} AS date, 'purchase' AS funnel, {k} AS step, '{name}' AS name, {users[2]} AS users, "
            f"{users[2]} / nullif({users[0]}, 0) AS conversion, "
            f"{'NULL::DOUBLE' if k == 1 else f'{users[2]} / nullif({users[1]}, 0)'} AS step_conversion, "
            f"{users[2]} - {users[3] if k < 4 else users[2]} AS drop_off, {waits} AS median_seconds"
        )
    parts = ", ".join([*reach, *back, *times])
    return [f"CREATE OR REPLACE TABLE funnel_daily AS WITH {parts} {' UNION ALL '.join(steps)}"]


OUTPUTS = ("user_sessions", "user_daily_metrics", "cube_geo", "cohorts", "product_daily", "funnel_daily",
           "user_first_seen")  # fmt: skip


def peer(lake: Path, day: date, output: Path) -> None:
    """Runs the script over the lake's Parquet files and writes one Parquet file a table."""
    import duckdb

    db = duckdb.connect(config={"threads": 2})
    db.execute(
        f"CREATE VIEW lake AS SELECT * REPLACE (CAST(event_time AS TIMESTAMP) AS event_time) "
        f"FROM read_parquet('{lake}/events/*/*.parquet')"
    )
    start = datetime(day.year, day.month, day.day)
    for statement in script(day, start, start + timedelta(days=1)):
        db.execute(statement)
    output.mkdir(parents=True)
    for table in OUTPUTS:
        db.execute(f"COPY {table} TO '{output / table}.parquet' (COMPRESSION zstd, COMPRESSION_LEVEL 1)")


def make_lake(events: int, work: Path) -> None:
    """Writes a lake of simulated events of 2026-01-05, with the batch pipeline."""
    from headrace.pipelines.batch import run_batch
    from headrace.pipelines.config import BatchConfig
    from headrace.simulator.simulate import simulate
    from headrace.transforms.keys import Key

    simulation = simulate(
        events, 5, start=datetime(2026, 1, 5, tzinfo=UTC), span=timedelta(hours=23), fault_rate=0.0
    )
    with open(work / "events.jsonl", "wb") as file:
        for chunk in simulation:
            file.write(chunk)
    Key(work / "key", create=True)
    config = BatchConfig(
        input=[str(work / "events.jsonl")],
        output=str(work / "lake"),
        key_file=str(work / "key"),
        now=datetime(2026, 1, 6, tzinfo=UTC),
        metrics={},
    )
    run_batch(config, beam_args=["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    os.unlink(work / "events.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.nightly", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the lake here, and use the one that is there")
    parser.add_argument("--only", choices=("lake", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    day = date(2026, 1, 5)
    if given.only == "lake":
        make_lake(given.events, given.work)
        return 0
    if given.only == "peer":
        peer(given.work / "lake", day, given.output)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        here = [sys.executable, "-m", "benchmarks.nightly", "--work", str(work)]
        if not (work / "lake" / "ledger.json").exists():
            measure([*here, "--events", str(given.events), "--only", "lake"], log=work / "lake.log")
        runs: dict[str, list[Usage]] = {"headrace": [], "DuckDB": []}
        for number in range(given.repeat):
            out = Path(folder) / f"warehouse-{number}"
            ours = [sys.executable, "-c", "from headrace.pipelines.cli import main; main()", "run", "nightly"]
            ours += ["--date", str(day), "--lake", str(work / "lake"), "--output", str(out), "--json"]
            ours += ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
            runs["headrace"].append(measure(ours, log=Path(folder) / "ours.log"))
            theirs = [*here, "--only", "peer", "--output", str(Path(folder) / f"peer-{number}")]
            runs["DuckDB"].append(measure(theirs, log=Path(folder) / "peer.log"))
    print(f"{'':10s} {'CPU s':>8s} {'wall s':>8s} {'peak MB':>8s}")
    totals = {}
    for name, usages in runs.items():
        cpu, wall = (median(getattr(u, n) for u in usages) for n in ("cpu_seconds", "wall_seconds"))
        totals[name] = cpu, wall
        print(f"{name:10s} {cpu:8.1f} {wall:8.1f} {max(u.peak_bytes for u in usages) / 2**20:8.0f}")
    ratios = [ours / theirs for ours, theirs in zip(totals["headrace"], totals["DuckDB"], strict=True)]
    print(f"{'ratio':10s} {ratios[0]:8.2f} {ratios[1]:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
