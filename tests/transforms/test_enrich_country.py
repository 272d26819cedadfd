"""Country from the address: registries, a database written here, and failures that are counted."""

import ipaddress
import pickle
import random
import struct
from pathlib import Path

import iptocc
import pyarrow as pa
import pytest

from headrace.schemas.columns import CODE, VALID_SCHEMA
from headrace.schemas.errors import ConfigError
from headrace.transforms.batches import conform
from headrace.transforms.distinct import of_type
from headrace.transforms.enrich_country import CountryKernel, EnrichCountry


def _encoded(value: object) -> bytes:
    """Encodes text, maps, empty lists and (as size and value) integers. Source: MaxMind DB file format 2.0, "Data Section"."""
    if isinstance(value, str):
        data = value.encode()
        assert len(data) < 29
        return bytes([2 << 5 | len(data)]) + data
    if isinstance(value, dict):
        return bytes([7 << 5 | len(value)]) + b"".join(_encoded(k) + _encoded(v) for k, v in value.items())
    if isinstance(value, list):
        return bytes([0, 11 - 7])
    assert isinstance(value, tuple)
    size, number = value
    kind = {2: bytes([5 << 5 | 2]), 4: bytes([6 << 5 | 4]), 8: bytes([8, 9 - 7])}[size]
    return kind + int(number).to_bytes(size, "big")


def write_mmdb(path: Path, networks: dict[str, dict[str, object]], version: int = 4) -> Path:
    """Writes a search tree with 32-bit records over disjoint networks of one IP version."""
    nodes: list[list[object]] = [[None, None]]
    data = b""
    for text, record in networks.items():
        network = ipaddress.ip_network(text)
        bits = f"{int(network.network_address):0{network.max_prefixlen}b}"[: network.prefixlen]
        at = 0
        for bit in bits[:-1]:
            following = nodes[at][int(bit)]
            if following is None:
                nodes.append([None, None])
                following = nodes[at][int(bit)] = len(nodes) - 1
            assert isinstance(following, int)
            at = following
        nodes[at][int(bits[-1])] = ("data", len(data))
        data += _encoded(record)
    count = len(nodes)
    tree = b"".join(
        struct.pack(">I", count if r is None else r if isinstance(r, int) else count + 16 + r[1])
        for node in nodes
        for r in node
    )
    about = {
        "binary_format_major_version": (2, 2), "binary_format_minor_version": (2, 0), "build_epoch": (8, 1),
        "database_type": "Test", "description": {}, "languages": [], "ip_version": (2, version), "node_count": (4, count),
        "record_size": (2, 32),
    }  # fmt: skip
    path.write_bytes(tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + _encoded(about))
    return path


@pytest.fixture(scope="module")
def kernel() -> CountryKernel:
    made = EnrichCountry().kernel()
    made.setup()
    assert isinstance(made, CountryKernel)
    return made


@pytest.mark.parametrize("type_", [pa.string(), CODE, pa.dictionary(pa.int8(), pa.large_string())])
def test_fills_what_is_null_and_counts_what_is_unknown(kernel: CountryKernel, type_: pa.DataType) -> None:
    kernel.counts.clear()
    addresses = [
        "8.8.8.8",
        "8.8.8.8",
        "10.0.0.1",
        None,
        "host.example",
        "2001:4860:4860::8888",
        "83.149.9.216",
        "",
    ]
    stated = [None, "DE", None, None, None, None, None, "FR"]
    batch = pa.RecordBatch.from_arrays(
        [of_type(pa.array(addresses), type_), of_type(pa.array(stated), type_), pa.array(range(8))],
        names=["ip_address", "country", "n"],
    )
    before = batch.to_pydict()
    accepted, rejected = kernel(batch)
    assert accepted.schema.equals(batch.schema)
    assert accepted.to_pydict() == before | {"country": ["US", "DE", None, None, None, "US", "RU", "FR"]}
    assert batch.to_pydict() == before
    assert rejected.num_rows == 0
    assert kernel.counts == {"country_unknown": 2}
    for start in range(0, 8, 3):
        part = kernel(batch.slice(start, 3)).accepted
        assert part.to_pydict() == accepted.slice(start, 3).to_pydict()


def test_missing_empty_and_null_columns(kernel: CountryKernel) -> None:
    kernel.counts.clear()
    without = pa.RecordBatch.from_pydict({"ip_address": ["8.8.8.8"]})
    assert kernel(without).accepted.to_pydict() == {"ip_address": ["8.8.8.8"], "country": ["US"]}
    assert kernel(without).accepted.schema.field("country").type == CODE
    nothing = pa.RecordBatch.from_pydict({"n": [1, 2]})
    assert kernel(nothing).accepted.to_pydict() == {"n": [1, 2], "country": [None, None]}
    nulls = pa.RecordBatch.from_pydict({"ip_address": pa.nulls(2), "country": pa.nulls(2)})
    assert kernel(nulls).accepted.column("country").to_pylist() == [None, None]
    empty = conform({}, VALID_SCHEMA, 0)
    assert kernel(empty).accepted.schema.equals(VALID_SCHEMA)
    assert kernel.counts == {}


def test_a_region_is_no_country(kernel: CountryKernel) -> None:
    """Registries assign some blocks to EU, which ISO 3166-1 gives to no country."""
    rng = random.Random(0)
    addresses = [str(ipaddress.IPv4Address(rng.getrandbits(32))) for _ in range(100_000)]
    of_union = addresses[iptocc.country_code(addresses).index("EU")]
    batch = pa.RecordBatch.from_pydict({"ip_address": [of_union]})
    assert kernel(batch).accepted.column("country").to_pylist() == [None]


def test_a_users_database(tmp_path: Path) -> None:
    path = write_mmdb(
        tmp_path / "c.mmdb",
        {
            "8.8.8.0/24": {"country": {"iso_code": "CH"}},
            "9.0.0.0/8": {"registered_country": {"iso_code": "AT"}},
            "10.0.0.0/8": {"city": "x"},
        },
    )
    transform = pickle.loads(pickle.dumps(EnrichCountry(path)))
    made = transform.kernel()
    made.setup()
    batch = pa.RecordBatch.from_pydict(
        {"ip_address": ["8.8.8.1", "9.1.1.1", "10.1.1.1", "7.7.7.7", "::1", "x"]}
    )
    assert made(batch).accepted.column("country").to_pylist() == ["CH", "AT", None, None, None, None]
    assert made.counts == {"country_unknown": 4}


def test_unusable_databases(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.mmdb can't be read: No such file"):
        EnrichCountry(tmp_path / "none.mmdb")
    (tmp_path / "bad.mmdb").write_bytes(b"text" * 99)
    with pytest.raises(ConfigError, match=r"bad\.mmdb is no MMDB file"):
        EnrichCountry(tmp_path / "bad.mmdb")
    path = write_mmdb(tmp_path / "c.mmdb", {"8.0.0.0/8": {}})
    gone = EnrichCountry(path).kernel()
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        gone.setup()
