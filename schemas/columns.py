"""The canonical event as Arrow columns: what every family is mapped onto.

Names and types are the contract of every RecordBatch on the hot path, of the lake and of the quarantine. Times are UTC in
microseconds, money is ``decimal128(38, 9)``, JSON columns hold canonical JSON text (sorted keys, no white space).
"""

import pyarrow as pa

STRING = pa.string()
CODE = pa.dictionary(pa.int32(), pa.string())
"""Type of low-cardinality strings; a plain string column is accepted wherever one of these is expected."""
TIME = pa.timestamp("us", tz="UTC")
MONEY = pa.decimal128(38, 9)

_EVENT: list[tuple[str, pa.DataType, str]] = [
    ("event_id", STRING, "lower-case UUID; generated (UUIDv8) for families that carry none"),
    (
        "id_generated",
        pa.bool_(),
        "true if the event carried no id and event_id was made from its content or position",
    ),
    ("event_time", TIME, "when it happened"),
    ("event_date", pa.date32(), "UTC calendar date of event_time; the lake's partition"),
    ("ingest_time", TIME, "when it reached us; set by the source, never by a worker's clock"),
    ("schema", CODE, "family and version it was validated against, as name:version"),
    ("schema_version", CODE, "version that the event itself stated; null if none"),
    ("source", CODE, "producer named by the event; null if none"),
    ("origin", CODE, "where it was read: file relative to the input's root, or topic"),
    ("origin_position", pa.int64(), "1-based record number in its origin (line, row), or offset"),
    ("user_id", STRING, "keyed token of the user's id; null if none"),
    ("session_id", STRING, "the producer's session; null if none"),
    ("attributes", STRING, "user attributes, a JSON object"),
    ("device_type", CODE, "as stated by the event, else derived from the user agent"),
    ("os_version", CODE, ""),
    ("app_version", CODE, ""),
    ("platform", CODE, ""),
    ("screen_resolution", CODE, ""),
    ("country", CODE, "ISO 3166-1 alpha-2, as stated by the event, else derived from the address"),
    ("region", CODE, ""),
    ("city", CODE, ""),
    ("ip_address", STRING, "truncated to /24 (IPv4) or /48 (IPv6)"),
    ("user_agent", CODE, ""),
    ("referrer", STRING, ""),
    ("event_type", CODE, ""),
    ("page_url", STRING, ""),
    ("product_id", STRING, "product, or a financial instrument's symbol"),
    ("category", CODE, ""),
    ("price", MONEY, "price of one unit, in currency"),
    ("quantity", pa.int64(), "units"),
    ("currency", CODE, "ISO 4217 code"),
    ("amount", MONEY, "total of the transaction, in currency"),
    ("order_id", STRING, ""),
    ("payment_method", CODE, ""),
    ("discount_code", CODE, ""),
    ("query", STRING, "search text"),
    ("http_method", CODE, ""),
    ("http_status", pa.int32(), ""),
    ("response_bytes", pa.int64(), "bytes; null if the log says '-'"),
    ("properties", STRING, "the family's other properties, a JSON object"),
    ("custom_data", STRING, "any JSON value"),
    ("extra", STRING, "fields that the schema does not name: a JSON object, JSON pointer to value"),
]

_ENRICHED: list[tuple[str, pa.DataType, str]] = [
    (
        "event_category",
        CODE,
        "browse, discovery, engagement, conversion, reversal, account, finance or other",
    ),
    ("browser", CODE, "family, from the user agent"),
    ("os", CODE, "family, from the user agent"),
    ("is_bot", pa.bool_(), "from the user agent; null if there is none"),
    ("revenue", MONEY, "purchases: amount, else price × quantity; refunds negative; else null"),
]

_QUARANTINE: list[tuple[str, pa.DataType, str]] = [
    ("stage", CODE, "the stage that rejected it"),
    ("reason", CODE, "stable reason code"),
    ("pointer", STRING, "JSON pointer of the first failure; null if it concerns the whole document"),
    ("message", STRING, "what is wrong and what was expected; never a value of a sensitive field"),
    ("errors", STRING, "JSON array of all failures: code, pointer, message"),
    (
        "document",
        pa.binary(),
        "the raw document sealed with the key (AES-SIV); null once masked columns hold it",
    ),
    ("attempt", pa.int32(), "1 for the first run, +1 for each replay"),
]

EVENT_SCHEMA = pa.schema([pa.field(n, t) for n, t, _ in _EVENT])
"""Columns after Validate and MaskPii."""
ENRICHED_SCHEMA = pa.schema([pa.field(n, t) for n, t, _ in _EVENT + _ENRICHED])
"""Columns after Enrich (profile columns, if any, follow), and of the lake."""
QUARANTINE_SCHEMA = pa.schema([pa.field(n, t) for n, t, _ in _EVENT + _ENRICHED + _QUARANTINE])
"""Columns of every ``.rejected`` and of the quarantine table; event columns are null where unknown or sensitive."""
RAW_SCHEMA = pa.schema(
    [
        pa.field("raw", pa.binary()),
        pa.field("origin", CODE),
        pa.field("origin_position", pa.int64()),
        pa.field("ingest_time", TIME),
        pa.field("fault", CODE),
    ]
)
"""What a source emits: one row a record. ``fault`` is null, or the reason code for which the source could not read the record."""

RAW = "_raw"
"""Carried from Decode to MaskPii only: the raw record, for sealing into the quarantine."""
PENDING = "_pending"
"""Carried from Decode to Validate only: true where validity is not yet proven."""
DECODED_SCHEMA = EVENT_SCHEMA.append(pa.field(RAW, pa.binary())).append(pa.field(PENDING, pa.bool_()))
"""Columns after Decode; typed columns are null in pending rows."""
VALID_SCHEMA = EVENT_SCHEMA.append(pa.field(RAW, pa.binary()))
"""Columns after Validate and RejectStale."""

JSON_COLUMNS = ("attributes", "properties", "custom_data", "extra")
DESCRIPTIONS = {n: d for n, _, d in _EVENT + _ENRICHED + _QUARANTINE}
