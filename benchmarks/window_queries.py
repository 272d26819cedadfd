"""The ready-made window tables as plain DuckDB queries over a table `events`: what a benchmark is held against, and the tests'
oracle.

Each gives the columns of the table but `window_end`; the errors of exact counts are 0, and the mean of order_values_1h is given
as sum and count."""

MINUTES = "SELECT *, time_bucket(INTERVAL 1 minute, event_time) AS w FROM events"
HOURS = "SELECT *, time_bucket(INTERVAL 1 hour, event_time) AS w FROM events"


def sliding(minutes: int) -> str:
    return (
        "SELECT *, time_bucket(INTERVAL 1 minute, event_time) - to_minutes(i) AS w "
        f"FROM events, (SELECT unnest(range({minutes})) AS i)"
    )


def users(event_type: str | None = None) -> str:
    chosen = "true" if event_type is None else f"event_type = '{event_type}'"
    return f"count(DISTINCT user_id) FILTER (WHERE {chosen})"


VIEWS = "event_type IN ('page_view', 'product_view')"
SHOP = "event_category IN ('browse', 'engagement', 'conversion', 'reversal')"
QUANTILES = ", ".join(f"quantile_disc(revenue, {q})" for q in (0.5, 0.95, 0.99))

QUERIES = {
    "events_per_minute": f"SELECT w, event_type, count(*), {users()}, 0 FROM ({MINUTES}) GROUP BY ALL",
    "events_10m": f"SELECT w, event_type, count(*), {users()}, 0 FROM ({sliding(10)}) GROUP BY ALL",
    "revenue_per_minute": (
        f"SELECT w, event_type, currency, count(*), {users()}, 0, sum(revenue) FROM ({MINUTES}) "
        "WHERE revenue IS NOT NULL GROUP BY ALL"
    ),
    "active_users_1m": f"SELECT w, count(*), {users()}, 0 FROM ({MINUTES}) GROUP BY ALL",
    "active_users_5m": f"SELECT w, count(*), {users()}, 0 FROM ({sliding(5)}) GROUP BY ALL",
    "active_users_1h": f"SELECT w, count(*), {users()}, 0 FROM ({HOURS}) GROUP BY ALL",
    "page_views_per_minute": f"SELECT w, category, count(*) FROM ({MINUTES}) WHERE {VIEWS} GROUP BY ALL",
    "page_views_by_url_5m": f"SELECT w, page_url, count(*) FROM ({sliding(5)}) WHERE {VIEWS} GROUP BY ALL",
    "conversion_5m": (
        "SELECT w, users, 0, views, 0, products, 0, carts, 0, buyers, 0, buyers / nullif(users, 0) FROM ("
        f"SELECT w, {users()} AS users, {users('page_view')} AS views, "
        f"{users('product_view')} AS products, {users('add_to_cart')} AS carts, "
        f"{users('purchase')} AS buyers FROM ({sliding(5)}) GROUP BY ALL)"
    ),
    "top_products_1h": (
        "SELECT *, row_number() OVER (PARTITION BY w ORDER BY events DESC, product_id) AS rank FROM ("
        "SELECT w, product_id, count(*) AS events, count(*) FILTER (WHERE event_type = 'purchase'), "
        "CAST(sum(quantity) FILTER (WHERE event_type = 'purchase') AS DECIMAL(38, 9)) "
        f"FROM ({HOURS}) WHERE product_id IS NOT NULL AND {SHOP} GROUP BY ALL) QUALIFY rank <= 10"
    ),
    "top_categories_1h": (
        "SELECT *, row_number() OVER (PARTITION BY w ORDER BY events DESC, category) AS rank FROM ("
        "SELECT w, category, count(*) AS events, count(*) FILTER (WHERE event_type = 'purchase') "
        f"FROM ({HOURS}) WHERE category IS NOT NULL GROUP BY ALL) QUALIFY rank <= 10"
    ),
    "geography_1h": f"SELECT w, country, region, count(*), {users()}, 0 FROM ({HOURS}) GROUP BY ALL",
    "order_values_1h": (
        f"SELECT w, currency, count(*), sum(revenue), count(revenue), min(revenue), max(revenue), {QUANTILES} FROM ({HOURS}) "
        "WHERE revenue IS NOT NULL AND event_type = 'purchase' GROUP BY ALL"
    ),
}
