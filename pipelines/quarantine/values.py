"""Values of quarantined rows as plain JSON values."""

from base64 import b64encode
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any


def plain_value(value: Any) -> Any:
    """Times become ISO 8601 text with Z, money becomes text, a sealed document base64; the rest is as it is.

    >>> plain_value(Decimal("19.990000000")), plain_value(b"sealed")
    ('19.99', 'c2VhbGVk')
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return b64encode(value).decode() if isinstance(value, bytes) else value
