"""Masks what the schemas tag as sensitive, before anything may be shuffled, stored or shown."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from headrace.schemas.columns import JSON_COLUMNS, RAW
from headrace.schemas.errors import ConfigError
from headrace.schemas.registry import Registry
from headrace.transforms.base import Kernel, Outcome, StageTransform
from headrace.transforms.batches import drop, plain, replace
from headrace.transforms.distinct import DistinctCache, distinct, of_type
from headrace.transforms.keys import Key
from headrace.transforms.mask_json import JsonMasker, Operator
from headrace.transforms.pii_patterns import PatternScanner
from headrace.transforms.rejects import no_rejects

KINDS = ("token", "ip", "url", "text", "json")

_CACHED_TOKENS = 65_536
_CACHED_ADDRESSES = 16_384
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"\A{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}\z"
_6TO4 = ipaddress.IPv6Network("2002::/16")


class MaskPii(StageTransform):
    """Replaces what is sensitive in each event: ids by keyed tokens, addresses by their network, e-mails and cards by a label.

    Equal values give equal tokens under one key, so masked columns still join. Row order, row count and all other columns are
    unchanged; the column ``_raw`` is dropped. Stateless; bounded or unbounded; any windowing; a replay gives the same output.

    Input: batches with any of the columns of ``sensitive``, as strings or dictionaries of strings; one that is missing is ignored.
    Output: the same columns and types, without ``_raw``. Null stays null. By kind:

    - ``token``: 32 hex characters, :meth:`Key.token`.
    - ``ip``: the network's first address, IPv4 cut to /24, IPv6 to /48, in canonical text (RFC 5952); an IPv4-mapped address is
      cut as IPv4, and 6to4 (RFC 3056), which holds an IPv4 address, to /40; what is no address is null.
    - ``url``, ``text``: e-mails, cards and credentials replaced, see :class:`PatternScanner`.
    - ``json``: the same for every string, key and long number of the document, see :class:`JsonMasker`.

    ``.rejected`` is always empty. Counted: ``invalid_ip``, ``masked_cells`` and ``redacted_cells`` (cells in which a pattern was
    found, and cells replaced as a whole because they could not be searched).

    Args:
        key: of the tokens.
        sensitive: column, or path of a member of a JSON column (``properties/counterparty``) → kind. ``None`` means all that the
            schemas tag, and all JSON columns.

    Raises:
        ConfigError: an unknown kind, a path into a column that holds no JSON, or a member of kind ``json``.

    Example:
        >>> import tempfile, pyarrow as pa
        >>> key = Key(tempfile.mkdtemp() + "/key", create=True)
        >>> mask = MaskPii(key, sensitive={"ip_address": "ip", "query": "text"}).kernel()
        >>> mask.setup()
        >>> batch = pa.RecordBatch.from_pydict({"ip_address": ["192.0.2.7"], "query": ["ask ann@example.com"]})
        >>> mask(batch).accepted.to_pylist()
        [{'ip_address': '192.0.2.0', 'query': 'ask [email]'}]
    """

    def __init__(self, key: Key, *, sensitive: Mapping[str, str] | None = None) -> None:
        super().__init__()
        if not isinstance(key, Key):
            raise ConfigError(f"key is a {type(key).__name__}; give a headrace.transforms.keys.Key")
        self._key = key
        self._sensitive = (
            dict.fromkeys(JSON_COLUMNS, "json") | Registry.default().sensitive()
            if sensitive is None
            else dict(sensitive)
        )
        _check(self._sensitive)

    def kernel(self) -> Kernel:
        return MaskKernel(self._key, self._sensitive)


class MaskKernel:
    """The kernel of :class:`MaskPii`; arguments as checked there."""

    name = "mask"

    def __init__(self, key: Key, sensitive: Mapping[str, str]) -> None:
        self._key = key
        self._sensitive = dict(sensitive)
        self.counts: Counter[str] = Counter()

    def setup(self) -> None:
        """Loads the recognisers and empties the caches."""
        self._scanner = PatternScanner(self.counts)
        self._scanner.setup()
        self._tokens: DistinctCache[str] = DistinctCache(self._make_tokens, _CACHED_TOKENS)
        self._networks: DistinctCache[str] = DistinctCache(
            lambda values: [network(v) or "" for v in values], _CACHED_ADDRESSES
        )
        self._columns: dict[str, Callable[[pa.Array], pa.Array]] = {
            name: self._operator(name, kind) for name, kind in self._sensitive.items() if "/" not in name
        }
        for name in {n.partition("/")[0] for n in self._sensitive if "/" in n}:
            self._columns.setdefault(name, self._operator(name, "json"))

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        batch = drop(batch, RAW)
        masked = {
            name: self._mask(batch.column(name), operator)
            for name, operator in self._columns.items()
            if batch.schema.get_field_index(name) >= 0
        }
        return Outcome(replace(batch, masked), no_rejects())

    def _mask(self, column: pa.Array, operator: Operator) -> pa.Array:
        if column.null_count == len(column):
            return column
        return of_type(operator(plain(column).cast(pa.string())), column.type)

    def _operator(self, name: str, kind: str) -> Operator:
        if kind == "token":
            return self._tokenise
        if kind == "ip":
            return self._truncate
        if kind != "json":
            return self._scanner.scrub
        members = {
            tuple(_unescaped(part) for part in path.split("/")[1:]): self._operator(path, member)
            for path, member in self._sensitive.items()
            if path.startswith(f"{name}/") and member in ("token", "ip")
        }
        return JsonMasker(self._scanner, members, self.counts).scrub

    def _tokenise(self, column: pa.Array) -> pa.Array:
        codes = distinct(column)
        tokens = pa.array(self._tokens(codes.dictionary.to_pylist()), pa.string())
        return tokens.take(codes.indices)

    def _make_tokens(self, values: list[str]) -> list[str]:
        return self._key.tokens(pa.array(values, pa.string())).to_pylist()

    def _truncate(self, column: pa.Array) -> pa.Array:
        ipv4 = pc.match_substring_regex(column, _IPV4)
        cut = pc.replace_substring_regex(column, r"[0-9]+\z", "0")
        others = pc.and_(pc.invert(ipv4), pc.is_valid(column)).fill_null(False)
        if not others.true_count:
            return cut
        found = pa.array(self._networks(column.filter(others).to_pylist()), pa.string())
        found = pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found)
        self.counts["invalid_ip"] += found.null_count
        return pc.replace_with_mask(cut, others, found)


def network(address: str) -> str | None:
    """Returns the first address of the /24 (IPv4) or /48 (IPv6) that an address lies in; null for what is no address.

    >>> network("::ffff:192.0.2.7"), network("2001:db8:1:2::3"), network("example.org")
    ('192.0.2.0', '2001:db8:1::', None)
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            bits = 40 if parsed in _6TO4 else 48
            return str(ipaddress.IPv6Address(int(parsed) >> (128 - bits) << (128 - bits)))
        parsed = parsed.ipv4_mapped
    return str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFF00))


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _check(sensitive: Mapping[str, str]) -> None:
    for name, kind in sensitive.items():
        if kind not in KINDS:
            raise ConfigError(f"sensitive[{name!r}] is {kind!r}; use one of {', '.join(KINDS)}")
        column, slash, path = name.partition("/")
        if not slash:
            continue
        if column not in JSON_COLUMNS or sensitive.get(column, "json") != "json":
            raise ConfigError(
                f"sensitive[{name!r}] is a path into {column!r}, which holds no JSON; use one of {', '.join(JSON_COLUMNS)}"
            )
        if kind == "json" or not path:
            raise ConfigError(f"sensitive[{name!r}] is {kind!r}; a member is token, ip, url or text")
        if above := next((n for n in sensitive if "/" in n and name.startswith(f"{n}/")), None):
            raise ConfigError(
                f"sensitive[{name!r}] lies in {above!r}, which is masked as a whole; drop one of the two"
            )
