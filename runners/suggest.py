"""Hints for names that are not known."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ``did you mean 'x'?`` with the nearest known name, or the list of all if none is near.

    ``-`` and ``_`` count as equal. A long list is not given in full.
    """
    names = list(known)
    plain = {candidate.replace("-", "_").lower(): candidate for candidate in reversed(names)}
    near = difflib.get_close_matches(name.replace("-", "_").lower(), plain, n=1)
    if near:
        return f"did you mean {plain[near[0]]!r}?"
    if len(names) > 60:
        return "no known name is near"
    return f"known: {', '.join(names)}"
