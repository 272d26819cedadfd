"""Presidio's recognisers, as they are but for the network."""

from functools import cache

import tldextract
from presidio_analyzer.predefined_recognizers import CreditCardRecognizer, EmailRecognizer

__all__ = ["CreditCardRecognizer", "OfflineEmailRecognizer"]


@cache
def _suffixes() -> tldextract.TLDExtract:
    """Loads the public-suffix snapshot, once a process."""
    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), fallback_to_snapshot=True)
    suffixes("")
    return suffixes


class OfflineEmailRecognizer(EmailRecognizer):
    """Presidio's recogniser with the public-suffix snapshot of the installed tldextract: it never downloads another one."""

    def __init__(self) -> None:
        super().__init__()
        self._extract = _suffixes()

    def validate_result(self, pattern_text: str) -> bool:
        return bool(self._extract(pattern_text).fqdn)
