"""Ids for events that carry none: UUIDv8 made from an event's content, or from its position in a stream.

Layout: RFC 9562 §5.8 (version 8: 122 bits of the maker's choice). The bits are XXH3-128 digests (xxhash specification 0.2.0),
which are not cryptographic: they identify, they do not conceal. Equal inputs give equal ids in every run, on every machine.
The three functions hash under different seeds, so that their ids never meet by construction.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from headrace.transforms.batches import encoded, plain

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_ORIGIN, _OCCURRENCE, _POSITION = 0x6F726967, 0x6F636375, 0x706F7369
_DASHES = (8, 13, 18, 23)
_DIGITS = np.array([i for i in range(36) if i not in _DASHES])
_HEX = np.frombuffer("".join(f"{i:02x}" for i in range(256)).encode(), np.uint8).reshape(256, 2)
_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_NIBBLE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16, dtype=np.uint8)


def content_ids(origins: pa.Array, documents: pa.Array) -> pa.StringArray:
    """Returns the id of each document's first occurrence in its origin.

    Args:
        origins: string or dictionary of strings; null counts as the empty origin.
        documents: binary; a null document has no content and gets a null id.

    Equal documents of one origin get equal ids here; :func:`occurrence_ids` tells the later ones apart.
    """
    digests = _digests([b"" if d is None else d for d in documents.to_pylist()], 0)
    digests ^= _origin_digests(origins)
    return _uuid8(digests, _valid(documents))


def position_ids(origins: pa.Array, positions: pa.Array) -> pa.StringArray:
    """Returns the id of each position (offset) in its origin (topic and partition), for streams.

    Args:
        origins: string or dictionary of strings; null counts as the empty origin.
        positions: integers; a null position gives a null id.
    """
    numbers = pc.fill_null(positions.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).astype("<i8")
    keys = np.empty((len(numbers), 24), np.uint8)
    keys[:, :16] = _origin_digests(origins)
    keys[:, 16:] = numbers.view(np.uint8).reshape(-1, 8)
    return _uuid8(_row_digests(keys, _POSITION), _valid(positions))


def occurrence_ids(base_ids: Sequence[str] | pa.Array, occurrences: npt.ArrayLike) -> pa.StringArray:
    """Returns the id of occurrence k (0, 1, 2, …) of the content whose first occurrence has ``base_id``.

    Occurrence 0 is the base id itself.

    Raises:
        ValueError: a base id is not a UUID, an occurrence is negative, or the lengths differ.
    """
    ids = plain(base_ids) if isinstance(base_ids, pa.Array) else pa.array(base_ids, pa.string())
    counts = np.asarray(occurrences, dtype=np.int64).astype("<i8")
    if counts.shape != (len(ids),) or (counts < 0).any():
        raise ValueError("occurrences must be one number of 0 or more for each base id")
    bits, known = uuid_bytes(ids)
    if not known.all():
        raise ValueError(f"base id in row {int(np.flatnonzero(~known)[0])} is not a UUID")
    later = counts > 0
    keys = np.empty((int(later.sum()), 24), np.uint8)
    keys[:, :16] = bits[later]
    keys[:, 16:] = counts[later].view(np.uint8).reshape(-1, 8)
    bits[later] = _marked(_row_digests(keys, _OCCURRENCE))
    return uuid_text(bits)


def uuid_bytes(ids: pa.Array) -> tuple[U8, Mask]:
    """Parses UUID text of 36 characters, in either case, to 16 bytes each.

    Returns:
        bytes of shape (n, 16), zero where the text is null or no UUID; and whether it is one.
    """
    ids = plain(ids).cast(pa.binary())
    out = np.zeros((len(ids), 16), np.uint8)
    known = mask = _fixed_width(ids)
    if not mask.any():
        return out, known
    text = _fixed_bytes(ids if mask.all() else ids.filter(pa.array(mask)))
    nibbles = _NIBBLE[text[:, _DIGITS]]
    good = (nibbles < 16).all(axis=1) & (text[:, _DASHES] == ord("-")).all(axis=1)
    parsed = (nibbles[:, 0::2] << 4) | (nibbles[:, 1::2] & 15)
    if good.all():
        out[mask] = parsed
    else:
        rows = np.flatnonzero(mask)
        known = np.zeros(len(ids), bool)
        known[rows[good]] = True
        out[rows[good]] = parsed[good]
    return out, known


def uuid_text(bits: U8, valid: Mask | None = None) -> pa.StringArray:
    """Writes (n, 16) bytes as lower-case UUID text; null where not ``valid``."""
    rows = len(bits)
    text = np.full((rows, 36), ord("-"), np.uint8)
    text[:, _DIGITS] = _HEX[bits].reshape(rows, 32)
    offsets = np.arange(rows + 1, dtype=np.int32) * 36
    bitmap = None
    if valid is not None and not valid.all():
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text), bitmap)


def _uuid8(digests: U8, valid: Mask) -> pa.StringArray:
    return uuid_text(_marked(digests), valid)


def _marked(digests: U8) -> U8:
    """Sets version 8 and variant 10 (RFC 9562 §4.1, §4.2)."""
    digests[:, 6] = (digests[:, 6] & 0x0F) | 0x80
    digests[:, 8] = (digests[:, 8] & 0x3F) | 0x80
    return digests


def _digests(values: Sequence[bytes], seed: int) -> U8:
    digest: Callable[[bytes, int], bytes] = xxh3_128_digest
    joined = b"".join([digest(v, seed) for v in values])
    return np.frombuffer(bytearray(joined), np.uint8).reshape(-1, 16)


def _row_digests(keys: U8, seed: int) -> U8:
    """Digests each row of a (n, width) array."""
    width = keys.shape[1]
    joined = keys.tobytes()
    return _digests([joined[i : i + width] for i in range(0, len(joined), width)], seed)


def _origin_digests(origins: pa.Array) -> U8:
    """Digests each row's origin, hashing only the distinct ones; null is as the empty string."""
    codes = encoded(origins.cast(pa.string()) if pa.types.is_null(origins.type) else origins)
    names = [*((v or "").encode() for v in codes.dictionary.to_pylist()), b""]
    rows = pc.fill_null(codes.indices, len(names) - 1).to_numpy(zero_copy_only=False)
    return _digests(names, _ORIGIN)[rows]


def _valid(array: pa.Array) -> Mask:
    valid: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _fixed_width(ids: pa.Array) -> Mask:
    mask: Mask = pc.fill_null(pc.equal(pc.binary_length(ids), 36), False).to_numpy(zero_copy_only=False)
    return mask


def _fixed_bytes(ids: pa.Array) -> U8:
    """Views a binary array without nulls, whose values all have 36 bytes, as (n, 36)."""
    start = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset]
    data = np.frombuffer(ids.buffers()[2], np.uint8)
    return data[start : start + 36 * len(ids)].reshape(-1, 36)
