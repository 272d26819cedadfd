"""The window tables that pipelines make unless told otherwise."""

from datetime import timedelta

from headrace.transforms.window_definitions import (
    Count,
    Distinct,
    Max,
    Mean,
    Measure,
    Min,
    Quantiles,
    Ratio,
    Sum,
    Top,
    Windows,
)

_MINUTE, _FIVE, _TEN, _HOUR = (timedelta(minutes=m) for m in (1, 5, 10, 60))
_VIEWS = {"event_type": ("page_view", "product_view")}
_PURCHASES = {"event_type": "purchase"}


def _events_and_users() -> dict[str, Measure]:
    return {"events": Count(), "unique_users": Distinct("user_id")}


def _users_by(stages: dict[str, str]) -> dict[str, Measure]:
    return {name: Distinct("user_id", {"event_type": type_}) for name, type_ in stages.items()}


METRICS: dict[str, Windows] = {
    "events_per_minute": Windows(measures=_events_and_users()),
    "events_10m": Windows(_TEN, measures=_events_and_users(), every=_MINUTE),
    "revenue_per_minute": Windows(by=("event_type", "currency"), where={"revenue": "*"}),
    "active_users_1m": Windows(by=(), measures=_events_and_users()),
    "active_users_5m": Windows(_FIVE, by=(), measures=_events_and_users(), every=_MINUTE),
    "active_users_1h": Windows(_HOUR, by=(), measures=_events_and_users()),
    "page_views_per_minute": Windows(by=("category",), measures={"views": Count()}, where=_VIEWS),
    "page_views_by_url_5m": Windows(
        _FIVE, by=("page_url",), measures={"views": Count()}, where=_VIEWS, every=_MINUTE
    ),
    "conversion_5m": Windows(
        _FIVE,
        by=(),
        measures={
            "users": Distinct("user_id"),
            **_users_by(
                {
                    "page_viewers": "page_view",
                    "product_viewers": "product_view",
                    "cart_users": "add_to_cart",
                    "buyers": "purchase",
                }
            ),
            "conversion_rate": Ratio("buyers", "users"),
        },
        every=_MINUTE,
    ),
    "top_products_1h": Windows(
        _HOUR,
        by=("product_id",),
        measures={
            "events": Count(),
            "purchases": Count(_PURCHASES),
            "units": Sum("quantity", _PURCHASES),
        },
        where={"product_id": "*", "event_category": ("browse", "engagement", "conversion", "reversal")},
        top=Top(10, "events"),
    ),
    "top_categories_1h": Windows(
        _HOUR,
        by=("category",),
        measures={"events": Count(), "purchases": Count(_PURCHASES)},
        where={"category": "*"},
        top=Top(10, "events"),
    ),
    "geography_1h": Windows(_HOUR, by=("country", "region"), measures=_events_and_users()),
    "order_values_1h": Windows(
        _HOUR,
        by=("currency",),
        measures={
            "orders": Count(),
            "mean_value": Mean("revenue"),
            "smallest_value": Min("revenue"),
            "largest_value": Max("revenue"),
            "value": Quantiles("revenue"),
        },
        where={"revenue": "*"} | _PURCHASES,
    ),
}
"""By name. ``events_10m`` is for anomalies; ``revenue_per_minute`` has refunds as negative amounts; ``conversion_5m`` has the
users who did each stage in the window, in any order."""
