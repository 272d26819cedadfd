"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What a check found. ``wrong``: a job fails or is not exact; ``warning``: it runs, but see the detail."""

    name: str
    status: Status
    detail: str
    fix: str = ""
