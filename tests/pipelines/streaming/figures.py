"""What the tests of telemetry share: a clock that is set, figures of a stream, and a small HTTP client."""

import http.client
from dataclasses import dataclass, field
from datetime import UTC, datetime

from headrace.pipelines.streaming.stream_progress import StreamProgress

START = 1_767_618_000.0
"""2026-01-05T13:00:00Z."""


class Clock:
    """Seconds since 1970 that pass only when told."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Totals:
    rows_in: int = 1000
    accepted: int = 900
    rejected: dict[str, dict[str, int]] = field(
        default_factory=lambda: {"decode": {"json": 40}, "deduplicate": {"duplicate": 50, "conflict": 0}}
    )
    late: dict[str, int] = field(default_factory=lambda: {"minutes": 7})
    in_flight: int = 10
    behind: int = 25
    watermark: datetime | None = None
    last_commit: datetime | None = None
    commits: int = 5
    balanced: bool = True


def at(seconds: float) -> datetime:
    """A time after START."""
    return datetime.fromtimestamp(START + seconds, UTC)


def progress(phase: str = "running", rows_per_second: float | None = 250.0) -> StreamProgress:
    return StreamProgress(
        rows=1000,
        accepted=900,
        rejected=90,
        rows_per_second=rows_per_second,
        behind=25,
        watermark_delay_seconds=None,
        committed_seconds=None,
        elapsed_seconds=10.0,
        phase=phase,
    )


def get(port: int | None, path: str, **headers: str) -> tuple[int, str, bytes]:
    """Returns status, content type and body."""
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read()
    finally:
        connection.close()
