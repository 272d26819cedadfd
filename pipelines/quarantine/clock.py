"""When things happened: a time for each row of quarantine and lake, and the bins that rates are looked at in."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb

from headrace.pipelines.quarantine.database import one

WIDTHS = tuple(timedelta(seconds=s) for s in (86_400, 3600, 900, 300, 60))
LEAST_BINS = 24
MOST_BINS = 20_000
_MINUTES = 10
"""Ingest times that lie in so many minutes or more tell when; those of a batch are all its reference time."""
_PLACES = 200_000
_SAMPLE = 4_000_000


@dataclass(frozen=True)
class Clock:
    """What ``happened`` (microseconds since 1970) means in the views ``timed`` (rows) and ``timed_events``, null where unknown."""

    by_ingest: bool
    """Else the events' own time: all rows have about one ingest time, so a row is as old as accepted records around it are."""
    start: int
    """Of the first bin, in microseconds."""
    width: timedelta
    bins: int

    @property
    def basis(self) -> str:
        """Says where the times come from."""
        if self.by_ingest:
            return "Times are those at which records reached us."
        return (
            "All records reached us at about one time, so times are those of the accepted events around them in their file "
            "or partition."
        )

    def time(self, bin: int) -> datetime:
        """Returns when a bin starts."""
        return moment(self.start) + self.width * bin


def make_clock(db: duckdb.DuckDBPyConnection) -> Clock | None:
    """Makes the views ``timed`` and ``timed_events``; returns None if there is no time to tell things by."""
    minutes = one(
        db,
        "SELECT count(DISTINCT time_bucket(INTERVAL 1 minute, ingest_time)) "
        "FROM (SELECT ingest_time FROM stored UNION ALL SELECT ingest_time FROM events)",
    )[0]
    by_ingest = minutes >= _MINUTES
    if by_ingest:
        for name, of in (("timed", "picked"), ("timed_events", "events"), ("timed_stored", "stored")):
            db.execute(f"CREATE VIEW {name} AS SELECT *, epoch_us(ingest_time) AS happened FROM {of}")
    else:
        _by_place(db)
    first, last = one(
        db,
        "SELECT min(happened), max(happened) FROM (SELECT happened FROM timed_events UNION ALL SELECT happened FROM timed_stored)",
    )
    if first is None:
        return None
    span = timedelta(microseconds=last - first)
    width = next((w for w in WIDTHS[1:] if span >= w * LEAST_BINS), WIDTHS[-1])
    if span / width > MOST_BINS:
        width = WIDTHS[0]
    size = width // timedelta(microseconds=1)
    start = first - first % size
    return Clock(by_ingest, start, width, (last - start) // size + 1)


def moment(micros: int) -> datetime:
    """Returns the time so many microseconds after 1970, UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def _by_place(db: duckdb.DuckDBPyConnection) -> None:
    """Gives a row the median event time of the accepted records in its stretch of its origin: up to 400 stretches an origin."""
    db.execute(
        "CREATE TABLE places AS SELECT origin, min(origin_position) AS low, max(origin_position) + 1 AS high FROM "
        "(SELECT origin, origin_position FROM events UNION ALL SELECT origin, origin_position FROM stored) "
        "WHERE origin IS NOT NULL AND origin_position IS NOT NULL GROUP BY origin"
    )
    origins, events = one(db, "SELECT (SELECT count(*) FROM places), (SELECT count(*) FROM events)")
    stretches = max(1, min(400, _PLACES // max(origins, 1)))
    every = max(1, events // _SAMPLE)
    stretch = f"CAST((CAST(origin_position - low AS HUGEINT) * {stretches}) // (high - low) AS INTEGER)"
    db.execute(
        f"CREATE TABLE stretches AS SELECT origin, {stretch} AS stretch, quantile_disc(epoch_us(event_time), 0.5) AS happened "
        f"FROM events JOIN places USING (origin) WHERE origin_position % {every} = 0 GROUP BY ALL"
    )
    for name, of in (("timed", "picked"), ("timed_events", "events"), ("timed_stored", "stored")):
        db.execute(
            f"CREATE VIEW {name} AS SELECT r.* EXCLUDE (low, high, stretch), s.happened FROM "
            f"(SELECT {of}.*, low, high, {stretch} AS stretch FROM {of} LEFT JOIN places USING (origin)) AS r "
            "LEFT JOIN stretches AS s ON r.origin = s.origin AND r.stretch = s.stretch"
        )
