"""What to do about a reason code, in one line: the texts that the code base has for it."""

from headrace.pipelines.streaming.poison import POISON
from headrace.pipelines.summary import STALE
from headrace.transforms.dedupe_records import CONFLICT, DUPLICATE, NO_ID
from headrace.transforms.raw_records import FAULTS

_OWN = {
    "malformed_json": "the producer cuts or breaks its JSON: look at one with `headrace quarantine show --unseal --clear`",
    "malformed_line": "no access-log line in the Combined or Common Log Format: check the server's log format, or --format",
    "nesting_too_deep": "flatten the document",
    "unknown_schema": "register the schema, or its new major version (`headrace schemas list` shows what is known), then replay",
    STALE: "if the input is an archive, run it with --now at the end of its data, or with a larger --max-age-seconds",
    "future": "the producer's clock is ahead by more than the limit; set it right",
    "no_time": "the event or the source gives no time; let the producer set it",
    DUPLICATE: "delivered or sent again; nothing is lost, the first one is in the lake",
    CONFLICT: "one id with two contents: the producer uses ids again, or changes an event that it sent",
    NO_ID: "the event has no id to tell duplicates by; let the producer set it",
    POISON: "a stage failed on the event: it is a bug, report it",
    "required": "the producer leaves out a property that the schema requires",
    "type": "the producer sends another type than the schema has; compare with the last change of the producer",
    "enum": "the producer sends a value that the schema does not list; add it to a new version of the schema, or mend the producer",
    "format": "the value is not in the format of the schema (a UUID, a time in RFC 3339, …)",
    "pattern": "the value does not match the schema's pattern",
    "additional_properties": "the producer sends properties that the schema forbids",
    "purchase_price_not_positive": "a purchase at no price, or a negative one; ask the shop, or set `rules` in the configuration",
    "decimal_out_of_range": "more digits than money has here: 29 before the point, 9 after it",
    "integer_out_of_range": "a number that 64 bits don't hold",
}


def advice(stage: str, reason: str) -> str | None:
    """Returns what to do about it; None where a reason, such as one of your own rules, has no text.

    >>> advice("decode", "truncated_input")
    'the file ends in the middle of its compressed stream; fetch it again'
    """
    if stage == "decode" and reason in FAULTS:
        return FAULTS[reason]
    return _OWN.get(reason)
