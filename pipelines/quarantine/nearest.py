"""Hints for misspelt names."""

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns the nearest of the names as a question, else all of them.

    >>> nearest("reson", ["stage", "reason"])
    "did you mean 'reason'?"
    """
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
