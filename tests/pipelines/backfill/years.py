"""An archive of a year and a half, laid out as teams do, for the tests of whole backfills."""

import random
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tests.pipelines.backfill.archives import DAY, Account, Row, account, random_rows, write_day

FIRST, MISSING, DOUBLED = date(2024, 2, 20), date(2024, 3, 5), date(2025, 6, 10)
LAST = date(2025, 6, 30)
STYLES = [(date(2024, 9, 1), 1), (date(2025, 1, 1), 2), (date.max, 3)]
"""Until which date the archive was written how."""
BROKEN = date(2024, 12, 30)


@dataclass(frozen=True)
class Years:
    """An archive of a year and a half, laid out as teams do."""

    root: Path
    files: list[tuple[str, date, int, list[Row]]]

    def expected(self, first: date, last: date) -> Account:
        """What the dates have to get, of the folders around them."""
        near = [f for f in self.files if first - DAY <= f[1] <= last + DAY]
        whole = account(near)
        accepted = {day: rows for day, rows in whole.accepted.items() if first <= day <= last}
        return Account(accepted, Counter({k: n for k, n in whole.rejected.items() if first <= k[0] <= last}))


def style_of(day: date) -> int:
    return next(style for until, style in STYLES if day < until)


def make_years(root: Path) -> Years:
    """Writes the archive: the schema changes twice, and a date is missing."""
    random_ = random.Random(7)
    files = []
    for n in range((LAST - FIRST).days + 1):
        day = FIRST + DAY * n
        if day == MISSING:
            continue
        rows = random_rows(random_, day, n * 100, 40, style_of(day))
        write_day(root, day, rows, style=style_of(day))
        files.append((f"dt={day}/part-0.parquet", day, style_of(day), rows))
    return Years(root, files)
