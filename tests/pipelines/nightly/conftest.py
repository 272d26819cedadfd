"""What the tests of the nightly pipeline share."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.pipelines.nightly.lakes import add_events, random_events


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Three days of events."""
    add_events(
        tmp_path / "lake", random_events(400, 1, datetime(2026, 1, 5, tzinfo=UTC), 72, users=12), "a", 1
    )
    return tmp_path / "lake"
