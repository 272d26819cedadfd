"""Finds e-mail addresses and payment cards in text, exactly as Presidio's recognisers do, and replaces them.

Presidio decides: its own :class:`EmailRecognizer` and :class:`CreditCardRecognizer` give the spans and the verdict (public
suffix, Luhn). They only see cells that :data:`SUSPICIOUS` matches, an RE2 *superset* of their patterns run over the whole Arrow
column: each address holds an ``@``, each card 13 to 17 digits in its grouping, whose first one is ASCII. The superset also
covers what percent-decoding can bring forth, because URLs are looked at decoded too.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex  # type: ignore[import-untyped]

from headrace.transforms.batches import mask_of
from headrace.transforms.distinct import DistinctCache

if TYPE_CHECKING:
    from presidio_analyzer import PatternRecognizer

EMAIL, CARD, CREDENTIALS, REDACTED = "[email]", "[card]", "[credentials]", "[redacted]"

MAX_DECODINGS = 3
"""How often a percent-encoded text is decoded again: a URL in a URL in a URL."""

_ANY_DIGIT = r"(?:[0-9\x{80}-\x{10FFFF}]|%(?:25)*(?:3[0-9]|[89A-Fa-f][0-9A-Fa-f]))"
_FIRST_DIGIT = r"(?:[13456]|%(?:25)*3[13456])"
_SEPARATOR = r"(?:[-+ ]|%(?:25)*2[0BDbd])?"
SUSPICIOUS = (
    rf"@|%(?:25)*40|{_FIRST_DIGIT}{_ANY_DIGIT}{{3}}{_SEPARATOR}{_ANY_DIGIT}{{3,4}}{_SEPARATOR}"
    rf"{_ANY_DIGIT}{{3,4}}{_SEPARATOR}{_ANY_DIGIT}{{3}}"
)
"""RE2: matches every text in which a recogniser could find anything, as it is or percent-decoded. Any character beyond ASCII
counts as a digit, since the recognisers' own pattern takes Unicode digits."""

_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_USERINFO = re.compile(r"""://([^/?#\s"'<>]+)@(?=[^/?#\s@])""")
_SPLIT = str.maketrans("/?&=#;", " " * 6)
_LOCAL = r"!#$%&'*+\-/=?^_`{|}~\w"
_ADDRESS = regex.compile(
    rf"(?<=[{_LOCAL}])@(?=\w+(?:-+\w+)*\.\w)", regex.DOTALL | regex.MULTILINE | regex.IGNORECASE
)
_CARD = regex.compile(r"[13456]\d{3}[- ]?\d{3,4}[- ]?\d{3,4}[- ]?\d{3}")
_BEFORE = regex.compile(rf"[{_LOCAL}.]*", regex.REVERSE)
_AFTER = regex.compile(r"[\w.-]*")
_CACHED_CELLS = 16_384


class Finding(NamedTuple):
    """Where something was found, as half-open character offsets, and what it is replaced by."""

    start: int
    end: int
    label: str


class UnscannableError(ValueError):
    """A recogniser failed on this text, for example on digits that its checksum can't read."""


class PatternScanner:
    """Replaces e-mail addresses by ``[email]``, cards by ``[card]`` and credentials in URLs by ``[credentials]``.

    Percent-encoded text (``%40``, also encoded twice or three times) is searched decoded as well and replaced in its encoded form.
    In a URL or query only the parameter's value is replaced, where Presidio's own span would take in the path before it: every
    finding of Presidio loses its ``@`` with the address around it, up to one of ``/?&=#;``. A cell on which a recogniser fails
    becomes ``[redacted]``. Pure: equal cells give equal results.

    Args:
        counts: to add ``masked_cells`` (cells changed) and ``redacted_cells`` (those of them lost as a whole) to.
    """

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self.counts = Counter[str]() if counts is None else counts

    def setup(self) -> None:
        """Empties the cache."""
        self._cache: DistinctCache[str] = DistinctCache(
            lambda cells: map(self._scrub_cell, cells), _CACHED_CELLS
        )

    @cached_property
    def _recognisers(self) -> tuple["PatternRecognizer", "PatternRecognizer"]:
        """Loaded with the first suspicious cell: Presidio brings spaCy along, which takes longer to import than all the rest."""
        from headrace.transforms.presidio_recognizers import CreditCardRecognizer, OfflineEmailRecognizer

        return OfflineEmailRecognizer(), CreditCardRecognizer()

    def suspicious(self, array: pa.Array) -> np.ndarray:
        """Returns, for each string, whether a recogniser could find something in it; null is false."""
        return mask_of(pc.match_substring_regex(array, SUSPICIOUS))

    def scrub(self, array: pa.Array) -> pa.Array:
        """Returns the strings with all findings replaced; null stays null."""
        flags = self.suspicious(array)
        if not flags.any():
            return array
        cells = array.filter(pa.array(flags)).to_pylist()
        scrubbed = self._cache(cells)
        changed = [new for old, new in zip(cells, scrubbed, strict=True) if old != new]
        if not changed:
            return array
        self.counts["masked_cells"] += len(changed)
        if redacted := changed.count(REDACTED):
            self.counts["redacted_cells"] += redacted
        return pc.replace_with_mask(array, pa.array(flags), pa.array(scrubbed, array.type))

    def scrub_values(self, texts: list[str]) -> list[str]:
        """Returns the texts, parts of cells, with all findings replaced; counts nothing."""
        flags = self.suspicious(pa.array(texts, pa.string()))
        scrubbed = iter(self._cache([t for t, flag in zip(texts, flags, strict=True) if flag]))
        return [str(next(scrubbed)) if flag else t for t, flag in zip(texts, flags, strict=True)]

    def findings(self, text: str) -> list[Finding]:
        """Returns what Presidio finds in this text as it stands, by position.

        Raises:
            UnscannableError: a recogniser failed.
        """
        return sorted(self._addresses(text) + self._cards(text))

    def _addresses(self, text: str) -> list[Finding]:
        around = _around_addresses(text)
        return self._found(self._recognisers[0], around, EMAIL) if around else []

    def _cards(self, text: str) -> list[Finding]:
        return self._found(self._recognisers[1], text, CARD) if _CARD.search(text) else []

    def _found(self, recogniser: "PatternRecognizer", text: str, label: str) -> list[Finding]:
        try:
            results = recogniser.analyze(text, recogniser.supported_entities)
        except (ValueError, TypeError) as error:
            raise UnscannableError(f"{recogniser.name} failed: {type(error).__name__}") from None
        return [Finding(r.start, r.end, label) for r in results]

    def _scrub_cell(self, text: str) -> str:
        try:
            found = self._all_findings(text)
        except UnscannableError:
            return REDACTED
        pieces, done = [], 0
        for start, end, label in _merged(found):
            pieces += [text[done:start], label]
            done = end
        return "".join(pieces) + text[done:]

    def _all_findings(self, text: str) -> list[Finding]:
        """Searches the most decoded form first; an ``@`` that was found there is not looked for again in a less decoded one."""
        found: list[Finding] = []
        for view in reversed(list(_views(text))):
            known = _merged(found)
            for item, anchor in self._in_view(view.text):
                at, _ = view.origin(anchor, anchor)
                before = bisect_right(known, at, key=lambda f: f.start) - 1
                if item.label == CARD or before < 0 or known[before].end <= at:
                    found.append(Finding(*view.origin(item.start, item.end), item.label))
        return found

    def _in_view(self, text: str) -> Iterator[tuple[Finding, int]]:
        """Yields findings, each with the position of its ``@`` (or start); a finding whose position is already taken is void.

        Presidio's span of an address runs on to the left through ``/``, ``?``, ``&`` and ``=``, and a ``?`` in it makes it void; so
        the parts of a URL or query are searched before the text as it stands.
        """
        items = self._addresses(text.translate(_SPLIT))
        if len(items) < text.count("@"):
            items += self._addresses(text)
        addresses = {text.index("@", item.start): item for item in reversed(items)}
        signs = sorted(addresses)
        for match in _USERINFO.finditer(text):
            start, end = match.span(1)
            inside = signs[bisect_left(signs, start) : bisect_right(signs, end)]
            if ":" in match[1] or not inside:
                for at in inside:
                    del addresses[at]
                yield Finding(start, end, CREDENTIALS), start
        yield from ((item, at) for at, item in addresses.items())
        cards = self._cards(text)
        if "+" in text:
            cards += self._cards(text.replace("+", " "))
        for item in cards:
            yield item, item.start


def _around_addresses(text: str) -> str:
    """Returns the text with a space for each character that can't be part of an address, other characters in place.

    Presidio finds the same addresses in it, but in linear time: its pattern tries every start up to the next ``@``, and only here
    is it sure that one with a domain follows. What is kept ends where a character of another class stands, so that word
    boundaries stay. Empty if there is no address.
    """
    kept = []
    done = 0
    for match in _ADDRESS.finditer(text):
        at = match.start()
        start = max(done, _BEFORE.match(text, pos=0, endpos=at).start())
        end = _AFTER.match(text, at + 1).end()
        kept.append(" " * (start - done) + text[start:end])
        done = end
    return "".join(kept)


class _View(NamedTuple):
    """A text decoded from another one: character i stands for the original's characters starts[i] to starts[i + 1]."""

    text: str
    starts: list[int]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        return self.starts[start], self.starts[end]


def _views(text: str) -> Iterator[_View]:
    """Yields the text as it is, then percent-decoded again and again until nothing changes."""
    view = _View(text, list(range(len(text) + 1)))
    yield view
    for _ in range(MAX_DECODINGS):
        if not _ESCAPES.search(view.text):
            return
        view = _decoded(view)
        yield view


def _decoded(view: _View) -> _View:
    """Decodes every run of percent escapes as UTF-8 (RFC 3986 §2.1); a byte that is not UTF-8 becomes U+FFFD."""
    pieces: list[str] = []
    starts: list[int] = []
    done = 0
    for run in _ESCAPES.finditer(view.text):
        pieces.append(view.text[done : run.start()])
        starts += view.starts[done : run.start()]
        characters = bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogateescape")
        position = run.start()
        for character in characters:
            starts.append(view.starts[position])
            position += 3 * len(character.encode("utf-8", "surrogateescape"))
        pieces.append(re.sub("[\ud800-\udfff]", "\ufffd", characters))
        done = run.end()
    return _View("".join(pieces) + view.text[done:], starts + view.starts[done:])


def _merged(found: list[Finding]) -> list[Finding]:
    """Returns findings in order, those that overlap as one with the label of the first."""
    merged: list[Finding] = []
    for item in sorted(found, key=lambda f: (f.start, -f.end)):
        if merged and item.start < merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, item.end))
        else:
            merged.append(item)
    return merged
