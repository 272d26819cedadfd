"""``headrace quarantine``: counts, safe samples, exports, and how mistakes are told."""

import base64
import csv
import json
import re
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headrace.connectors.read_quarantine import ROW_SCHEMA
from headrace.pipelines.cli import app
from headrace.pipelines.quarantine.describe import quoted
from headrace.schemas.failures import Failure
from headrace.transforms.keys import Key
from tests.pipelines.quarantine.planted import START, Row, reject, sealed, selected, traffic, write_output
from tests.pipelines.quarantine.test_patterns import rows_between

MAIL, USER, IP = "ann.lee@example.com", "user-4711", "203.0.113.77"
TOKEN = "0f" * 16
BAD_TYPE = [Failure("type", "/quantity", "expected integer, found string")]
ODD_NAME = [Failure("additional_properties", "", f'unexpected properties: "{MAIL}"')]


def click(**changes: Any) -> bytes:
    event = {
        "user_id": USER,
        "session_id": "s1",
        "event_type": "click",
        "device_type": "mobile",
        "ip_address": IP,
    }
    event |= {
        "timestamp": "2026-01-05T10:00:00Z",
        "page_url": f"https://shop.example/?mail={MAIL}",
        "note": {"by": MAIL},
    }
    return orjson.dumps(event | changes)


def handmade(key: Path) -> list[Row]:
    """Five rows of four reasons, with personal data wherever it can be."""
    base = {"ingest_time": START, "origin": "a.jsonl", "schema": "clickstream:1.0.0"}
    rows = [{**base, "origin_position": n} for n in range(1, 6)]
    invalid = [
        reject(rows[0], "validate", "type", BAD_TYPE),
        reject(rows[1], "validate", "type", BAD_TYPE),
        reject(rows[2], "validate", "additional_properties", ODD_NAME),
        reject(rows[3], "decode", "malformed_json", [Failure("malformed_json", "", "not JSON at column 3")]),
    ]
    documents = [
        click(quantity="two"),
        click(quantity="three"),
        click(),
        b'{"user_id": "' + USER.encode() + b'", \xff',
    ]
    duplicate = reject(
        rows[4], "dedupe", "duplicate", user_id=TOKEN, page_url="https://shop.example/", session_id="s1"
    )
    return [*sealed(Key(key), invalid, documents), duplicate]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    return write_output(tmp_path_factory.mktemp("handmade"), [], handmade(key))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake, rejects = traffic(6, events=3000)
    new = [reject(r, "rules", "price_not_positive") for r in rows_between(12, 24, 60)]
    return write_output(tmp_path_factory.mktemp("planted") / "out", lake, rejects + new)


def run(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["quarantine", *map(str, args)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_the_summary_counts_every_row_once(planted: Path) -> None:
    code, text, _ = run("summary", planted, "--json")
    assert code == 0
    found = json.loads(text)
    rows = selected(planted, None)
    assert found["rows"] == rows.num_rows == sum(r["rows"] for r in found["reasons"])
    for name in ("by_source", "by_schema", "by_app_version", "by_hour"):
        assert sum(r["rows"] for r in found[name]["rows"]) + found[name]["others"] == rows.num_rows
    reasons = {(r["stage"], r["reason"]): r for r in found["reasons"]}
    assert reasons["dedupe", "duplicate"]["rows"] == rows["reason"].to_pylist().count("duplicate")
    assert "replayed" not in text and "register" not in text
    assert reasons["decode", "malformed_json"]["advice"].startswith("the producer cuts")
    assert reasons["rules", "price_not_positive"]["advice"] is None
    hours = [r["hour"] for r in found["by_hour"]["rows"]]
    assert hours == sorted(hours) and hours[0] == "2026-01-05T00:00Z" and len(hours) == 24
    (pattern,) = found["patterns"]
    assert (pattern["kind"], pattern["rows"], pattern["first"]) == ("new", 60, "2026-01-05T12:00:00Z")
    assert selected(planted, pattern["where"]).num_rows == 60


def test_the_summary_for_people_has_a_where_that_can_be_pasted(planted: Path) -> None:
    code, text, _ = run("summary", planted)
    assert code == 0
    assert "New: rules: price_not_positive is new since 2026-01-05 12:00:00 UTC: 60 rows" in text
    pasted = re.search(r'--where "(.*)"', text)
    assert pasted is not None and selected(planted, pasted[1]).num_rows == 60
    assert "By hour of ingest (UTC)" in text and "2026-01-05T23:00Z" in text
    assert quoted("""a = 'b' AND c = '"'""") == """'a = '"'"'b'"'"' AND c = '"'"'"'"'"''"""


def test_rows_are_counted_by_any_columns_that_may_be_shown(planted: Path) -> None:
    code, text, _ = run(
        "summary", planted, "--by", "hour,source", "--where", "stage = 'rules'", "--since", "2026-01-05T20:00:00Z",
        "--until", "2026-01-05T22:00:00Z", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(text)
    expected = selected(
        planted,
        "stage = 'rules' AND ingest_time >= TIMESTAMPTZ '2026-01-05 20:00Z' AND ingest_time < TIMESTAMPTZ '2026-01-05 22:00Z'",
    )
    assert found["rows"] == expected.num_rows == 10
    assert sum(r["rows"] for r in found["by"]["rows"]) == 10
    assert {r["hour"] for r in found["by"]["rows"]} == {"2026-01-05T20:00Z", "2026-01-05T21:00Z"}
    assert "by_source" not in found
    for name, message in (("user_id", "holds persons' data"), ("sorce", "did you mean 'source'?")):
        code, _, error = run("summary", planted, "--by", name)
        assert (code, message in error) == (2, True), error


@pytest.mark.integration
def test_the_page_is_whole_loads_nothing_and_shows_the_pattern(planted: Path, tmp_path: Path) -> None:
    page = tmp_path / "q.html"
    code, _, error = run("summary", planted, "--html", page)
    assert code == 0 and str(page) in error
    text = page.read_text()
    assert "price_not_positive is new since" in text and "stage = &#39;rules&#39;" in text
    plots = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(plots) >= 3
    for plot in plots:
        ElementTree.fromstring(plot)
    assert "rows of the finding" in plots[0] and "share of events" in plots[0]
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|"http://[^"]*"', "", text)
    assert run("summary", planted, "--html", tmp_path / "q.png")[0] == 2


def test_a_sample_covers_reasons_first_and_shows_nothing_personal(out: Path) -> None:
    code, text, error = run("show", out, "--limit", "4", "--json")
    assert (code, error) == (0, "")
    rows = json.loads(text)["rows"]
    assert [(r["stage"], r["reason"]) for r in rows] == [
        ("decode", "malformed_json"), ("dedupe", "duplicate"), ("validate", "additional_properties"), ("validate", "type"),
    ]  # fmt: skip
    assert run("show", out, "--limit", "4", "--json")[1] == text
    everything = (
        run("show", out, "--json")[1]
        + run("show", out)[1]
        + run("summary", out, "--json")[1]
        + run("summary", out)[1]
    )
    for secret in (MAIL, USER, IP, TOKEN, "shop.example", "s1"):
        assert secret not in everything, secret
    assert "[email]" in text and "document" not in rows[1] and rows[3]["document_bytes"] > 100
    assert rows[3]["errors"] == [dict(BAD_TYPE[0])]
    assert "document sealed" in run("show", out)[1]


def test_documents_open_with_the_key_and_are_masked(out: Path, key: Path) -> None:
    code, text, error = run(
        "show", out, "--unseal", "--key-file", key, "--json", "--where", "reason = 'type'"
    )
    assert code == 0 and error.startswith("warning: ") and error.count("\n") == 1
    rows = json.loads(text)["rows"]
    document = json.loads(rows[0]["document"])
    assert document["quantity"] == "two" and document["user_id"] == Key(key).token(USER)
    assert document["ip_address"] == "203.0.113.0" and document["note"] == {"by": "[email]"}
    for secret in (MAIL, USER, IP):
        assert secret not in text
    code, text, _ = run("show", out, "--unseal", "--key-file", key, "--where", "stage = 'decode'")
    assert "not JSON" in text and USER not in text and "--clear shows it" in text


def test_clear_shows_documents_as_they_came(out: Path, key: Path) -> None:
    code, text, error = run("show", out, "--unseal", "--clear", "--key-file", key)
    assert code == 0 and "PII in clear" in error
    assert MAIL in text and IP in text and '", \\xff' in text


def test_another_key_and_options_that_mean_nothing_are_refused(out: Path, key: Path, tmp_path: Path) -> None:
    Key(tmp_path / "other", create=True)
    code, text, error = run("show", out, "--unseal", "--key-file", tmp_path / "other")
    assert code == 2 and "was not sealed with key" in error and text == ""
    for args, message in (
        (["--clear"], "--clear is for documents that are opened; add --unseal"),
        (["--key-file", key], "--key-file is for documents"),
        (["--unseal", "--key-file", tmp_path / "none"], "does not exist"),
        (["--where", "reson = 'type'"], "did you mean 'reason'?"),
    ):
        code, _, error = run("show", out, *args)
        assert (code, message in error) == (2, True), error


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_an_export_holds_the_selected_rows_with_sealed_documents(
    out: Path, tmp_path: Path, ending: str
) -> None:
    to = tmp_path / f"rows.{ending}"
    code, text, error = run("export", out, "--to", to, "--where", "reason <> 'additional_properties'")
    assert (code, text, error) == (0, f"{to}: 4 rows\n", "")
    expected = selected(out, "reason <> 'additional_properties'")
    documents = expected["document"].to_pylist()
    if ending == "parquet":
        assert pq.read_table(to).equals(expected)
        return
    if ending == "jsonl":
        rows = [json.loads(line) for line in to.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(to.open(newline="")))
        assert list(rows[0]) == ROW_SCHEMA.names
    assert [r["reason"] for r in rows] == expected["reason"].to_pylist()
    assert [base64.b64decode(r["document"]) if r.get("document") else None for r in rows] == documents
    assert rows[0]["ingest_time"] == "2026-01-05T00:00:00Z"
    code, _, error = run("export", out, "--to", to)
    assert code == 2 and "exists already and is not overwritten" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == [to.name]


@pytest.mark.parametrize("clear", [False, True], ids=["masked", "clear"])
@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_an_export_with_opened_documents(
    out: Path, key: Path, tmp_path: Path, ending: str, clear: bool
) -> None:
    to = tmp_path / f"rows.{ending}"
    more = ["--clear"] if clear else []
    code, _, error = run(
        "export", out, "--to", to, "--unseal", "--key-file", key, "--where", "reason = 'type'", *more
    )
    assert code == 0 and error.startswith("warning: ")
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    if ending == "parquet":
        found = pq.read_table(to)["document"].to_pylist()
    elif ending == "jsonl":
        found = [json.loads(line)["document"] for line in to.read_text().splitlines()]
    else:
        found = [row["document"] for row in csv.DictReader(to.open(newline=""))]
    if clear:
        wanted: list[Any] = [click(quantity="two"), click(quantity="three")]
        assert found == (wanted if ending == "parquet" else [w.decode() for w in wanted])
    else:
        assert [json.loads(d)["user_id"] for d in found] == [Key(key).token(USER)] * 2
        assert MAIL not in to.read_bytes().decode("latin-1")


def test_an_export_that_can_not_be_made_leaves_nothing(out: Path, key: Path, tmp_path: Path) -> None:
    Key(tmp_path / "other", create=True)
    for args, message in (
        (["--to", tmp_path / "rows.xlsx"], "unknown ending '.xlsx'; use one of .parquet, .jsonl, .csv"),
        (["--to", out / "quarantine" / "rows.parquet"], "lies in a table of the output"),
        (
            ["--to", tmp_path / "rows.jsonl", "--unseal", "--key-file", tmp_path / "other"],
            "was not sealed with key",
        ),
        (["--to", tmp_path / "rows.jsonl", "--where", "CAST(reason AS INTEGER) > 0"], "fails on a value"),
    ):
        code, _, error = run("export", out, *args)
        assert (code, message in error) == (2, True), error
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_an_empty_quarantine_is_no_error(tmp_path: Path) -> None:
    out = write_output(tmp_path / "out", traffic(1, events=50, rejected=0)[0], [])
    code, text, _ = run("summary", out, "--html", tmp_path / "q.html")
    assert code == 0 and "is empty" in text and "Nothing was rejected" in (tmp_path / "q.html").read_text()
    assert json.loads(run("summary", out, "--json")[1])["rows"] == 0
    code, text, error = run("show", out)
    assert (code, text) == (0, "") and "has no row" in error
    assert json.loads(run("show", out, "--json")[1]) == {"rows": []}
    assert run("export", out, "--to", tmp_path / "rows.csv")[1].endswith(": 0 rows\n")
    assert (tmp_path / "rows.csv").read_text().strip() == ",".join(ROW_SCHEMA.names)


def test_what_is_no_output_and_what_is_damaged_have_their_exit_codes(tmp_path: Path) -> None:
    code, _, error = run("summary", tmp_path / "none")
    assert code == 2 and "does not exist; name the --output of a run" in error
    lake, rejects = traffic(1, events=400)
    out = write_output(tmp_path / "out", lake, rejects)
    assert run("summary", out, "--where", "CAST(reason AS INTEGER) > 0")[0] == 2
    assert "no row of the" in run("summary", out, "--where", "false")[1]
    next((out / "quarantine").rglob("*.parquet")).unlink()
    for command in (["summary", out], ["show", out], ["export", out, "--to", tmp_path / "x.csv"]):
        code, _, error = run(*command)
        assert code == 3 and "can't be read" in error, (command, error)


def test_the_help_shows_examples() -> None:
    for command in ([], ["summary"], ["show"], ["export"]):
        code, text, _ = run(*command, "--help")
        assert code == 0 and "headrace quarantine" in text.partition("Usage:")[2].partition("\n")[2]
