"""Which format a file has: found by its content, with the suffix as a hint."""

import os
import re

from headrace.connectors.compression import without_suffix
from headrace.schemas.errors import InputError

FORMATS = ("jsonl", "csv", "parquet", "avro", "weblog")
LINE_FORMATS = ("jsonl", "weblog")

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".avro": "avro",
    ".log": "weblog",
}
DELIMITERS = (",", ";", "\t", "|")

_MAGIC = {"parquet": b"PAR1", "avro": b"Obj\x01"}
_BOM = b"\xef\xbb\xbf"
_WEBLOG = re.compile(rb"\S+ \S+ .{1,200}? \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] \"")
_NAME = re.compile(r"[^\W\d][\w .:/()-]{0,99}")


def detect_format(path: str, head: bytes, forced: str | None = None) -> str:
    """Returns one of ``FORMATS``.

    Parquet and Avro are known by their first bytes. Of text the first record decides: ``{`` begins JSON lines, a line in
    Combined or Common Log Format is a web log. If it is neither, the suffix decides; then a first line that is a CSV
    header, then a later line that is JSON or a log line. A file without content is taken for what its suffix says.

    Args:
        path: named in messages; its suffix (before that of a compression) is a hint.
        head: the first bytes, decompressed.
        forced: the format that the user stated.

    Raises:
        InputError: it can't be told, or the content contradicts the suffix or ``forced``.
    """
    suffix = os.path.splitext(without_suffix(path))[1].lower()
    hint = SUFFIXES.get(suffix)
    for name, magic in _MAGIC.items():
        if head.startswith(magic):
            if forced not in (None, name):
                raise InputError(f"{path} is {name}, but --format says {forced}; leave --format out")
            return name
    stated = forced or hint
    if stated in _MAGIC and head:
        why = "--format says" if forced else "its name says"
        raise InputError(
            f"{path} is no {stated} file though {why} so: it does not begin with {_MAGIC[stated].decode('ascii', 'replace')!r};"
            " it may be cut or corrupt, or --format is needed"
        )
    if forced is not None:
        return forced
    return _text_format(path, head, hint)


def delimiter_of(header: str) -> str:
    """Returns the delimiter of a CSV header line: the one of ``, ; tab |`` seen most outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=lambda d: (bare.count(d), -DELIMITERS.index(d)))


def _text_format(path: str, head: bytes, hint: str | None) -> str:
    text = head.removeprefix(_BOM)
    lines = [line for line in text.splitlines()[:100] if line.strip()]
    found = _record_format(lines[0]) if lines else None
    if found or hint:
        return found or str(hint)
    if not lines:
        return "jsonl"
    if _is_header(lines[0]):
        return "csv"
    for line in lines[1:]:
        if found := _record_format(line):
            return found
    raise InputError(
        f"{path}: its format can't be told: {_why(head)}; name it with --format {'|'.join(FORMATS)}"
    )


def _record_format(line: bytes) -> str | None:
    if line.lstrip().startswith(b"{"):
        return "jsonl"
    return "weblog" if _WEBLOG.match(line) else None


def _is_header(line: bytes) -> bool:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return False
    names = [name.strip().strip('"') for name in text.split(delimiter_of(text))]
    return len(names) > 1 and len(set(names)) == len(names) and all(map(_NAME.fullmatch, names))


def _why(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it looks like UTF-16, convert it to UTF-8"
    if head.lstrip().startswith(b"["):
        return "it looks like one JSON array, write one document a line (jq -c '.[]')"
    if b"\x00" in head:
        return "it is binary, but neither Parquet nor Avro"
    return "it begins with neither a JSON document, nor an access-log line, nor a CSV header"
