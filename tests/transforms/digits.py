"""A character that ``regex``, with its own Unicode tables, takes for a digit and this Python's ``int`` does not."""

import regex  # type: ignore[import-untyped]

_NEWER = range(0x10000, 0x20000)
UNREADABLE = next(chr(c) for c in _NEWER if regex.match(r"\d", chr(c)) and not chr(c).isdigit())
