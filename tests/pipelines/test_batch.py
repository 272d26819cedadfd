"""The batch pipeline end to end: idempotent, resumable, the same rows however the input is cut, and no PII in clear."""

import csv
import gzip
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from headrace.pipelines import batch, commit
from headrace.pipelines.batch import run_batch
from headrace.pipelines.config import BatchConfig
from headrace.pipelines.work_folder import WorkFolder
from headrace.schemas.errors import ConfigError
from headrace.simulator.simulate import simulate
from headrace.transforms.keys import Key
from tests.pipelines.conftest import Simulated
from tests.pipelines.runs import NOW, event, files, ledger, lines, metric, rows, run, table

Patch = pytest.MonkeyPatch
LOG = Path(__file__).parents[2].parent / "shared" / "data" / "apache-access.log.gz"
LOGS = [LOG] if LOG.exists() else []
"""The real log is no part of the repository: where it is absent there is nothing to collect."""
LOG_LINE = re.compile(
    r'(\S+) \S+ \S+ \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (?:\d+|-) "(?:[^"\\]|\\.)*" "((?:[^"\\]|\\.)*)"'
)
ASSET = re.compile(
    r"\.(css|js|mjs|map|png|jpe?g|gif|svg|webp|avif|ico|bmp|woff2?|ttf|eot|otf|mp[34]|webm|ogg|wav)([?#]|$)",
    re.I,
)


pytestmark = pytest.mark.integration


def everything(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def texts(out: Path) -> str:
    """Returns all text that the output holds: every string of every Parquet file, and every other file as it is."""
    found = []
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        found.append(path.relative_to(out).as_posix())
        if path.suffix != ".parquet":
            found.append(path.read_bytes().decode("utf-8", "replace"))
            continue
        content = pq.read_table(path, partitioning=None)
        for column in content.columns:
            if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
                found += [value for value in column.unique().to_pylist() if value is not None]
    return "\n".join(found)


# Idempotence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lake_format", ["delta", "parquet"])
def test_a_second_run_does_nothing_and_says_so(
    lake_format: str, small: Simulated, tmp_path: Path, key: Path, warm: None
) -> None:
    settings: dict[str, Any] = {"now": small.truth["now"], "lake_format": lake_format}
    first = run(small.path, tmp_path / "out", key, **settings)
    before = everything(tmp_path / "out")
    second = run(small.path, tmp_path / "out", key, **settings, shards=5)
    assert (first.already_done, second.already_done) == (False, True)
    assert everything(tmp_path / "out") == before
    assert second.ledger == first.ledger
    assert second.counts == first.counts
    assert first.counts["mask.masked_cells"] > 0
    assert second.top_event_types == first.top_event_types
    assert second.revenue == first.revenue
    assert second.rows_per_second is None
    assert not (tmp_path / "out" / "_work").exists()


def test_another_output_holds_the_same_bytes_and_parquet_the_same_rows_as_delta(
    small: Simulated, tmp_path: Path, key: Path, warm: None
) -> None:
    for name, lake_format in (("a", "delta"), ("b", "delta"), ("c", "parquet")):
        run(small.path, tmp_path / name, key, now=small.truth["now"], lake_format=lake_format)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in ("events", "quarantine"):
        assert rows(tmp_path / "a", name) == rows(tmp_path / "c", name)
    assert files(tmp_path / "a", "metrics") == files(tmp_path / "c", "metrics")
    assert ledger(tmp_path / "a") == ledger(tmp_path / "c")


class Killed(BaseException):
    """Ends a run where a kill would."""


def die_after(target: Any, name: str, calls: int) -> Callable[[Patch], None]:
    """Kills the run when the function has been called so often."""

    def patch(monkeypatch: Patch) -> None:
        function, made = getattr(target, name), Counter[str]()

        def dying(*arguments: Any, **settings: Any) -> Any:
            result = function(*arguments, **settings)
            made[name] += 1
            if made[name] >= calls:
                raise Killed
            return result

        monkeypatch.setattr(target, name, dying)

    return patch


DEATHS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "split written": ("started", die_after(WorkFolder, "write_receipt", 2)),
    "complete": ("started", die_after(WorkFolder, "mark_complete", 1)),
    "events committed": ("started", die_after(commit, "ensure_table", 2)),
    "committed": ("committed", die_after(commit, "count_rows", 1)),
    "counts saved": ("committed", die_after(batch, "save_counts", 1)),
    "done": ("done", die_after(batch, "load_result", 1)),
}


@pytest.fixture(scope="module")
def undisturbed(small: Simulated, tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(small.path, out, key, now=small.truth["now"], split_bytes=60_000)
    return out


@pytest.mark.parametrize("moment", DEATHS)
def test_a_run_that_died_is_finished_by_the_same_command(
    moment: str,
    small: Simulated,
    undisturbed: Path,
    tmp_path: Path,
    key: Path,
    warm: None,
    monkeypatch: Patch,
) -> None:
    out = tmp_path / "out"
    status, patch = DEATHS[moment]
    settings: dict[str, Any] = {"now": small.truth["now"], "split_bytes": 60_000}
    with monkeypatch.context() as scope:
        patch(scope)
        with pytest.raises((Killed, RuntimeError), match=r"Killed|^$"):
            run(small.path, out, key, **settings)
    assert json.loads((out / "manifest.json").read_bytes())["status"] == status
    result = run(small.path, out, key, **settings)
    assert result.already_done == (status == "done")
    for name in ("events", "quarantine"):
        assert rows(out, name) == rows(undisturbed, name)
    assert files(out) == files(undisturbed)
    for name in ("ledger.json", "counts.json"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not (out / "_work").exists()


def test_a_parquet_run_that_died_between_its_tables_is_finished(
    small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    settings: dict[str, Any] = {"now": small.truth["now"], "lake_format": "parquet"}
    with monkeypatch.context() as scope:
        die_after(commit, "commit_parquet", 1)(scope)
        with pytest.raises(Killed):
            run(small.path, tmp_path / "out", key, **settings)
    assert not (tmp_path / "out" / "quarantine").exists()
    run(small.path, tmp_path / "out", key, **settings)
    run(small.path, tmp_path / "whole", key, **settings)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_a_killed_writer_left_half_written_is_removed(
    small: Simulated, tmp_path: Path, key: Path, warm: None, monkeypatch: Patch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as scope:
        die_after(batch, "open_output", 1)(scope)
        with pytest.raises(Killed):
            run(small.path, out, key, now=small.truth["now"])
    left = out / "events" / "event_date=2026-01-05" / ".part-x-000000.parquet.77-0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"PAR1")
    run(small.path, out, key, now=small.truth["now"])
    assert not list(out.rglob("*.tmp"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """An output of one event."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "events.jsonl").write_bytes(lines([event(1)]))
    run(folder / "events.jsonl", folder / "out", key)
    return folder


def refused(difference: str, **changes: Any) -> Any:
    return pytest.param(changes, difference, id=difference[:20])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        refused("now was 2026-01-05T13:00:00Z, is 2026-01-05T14:00:00Z", now=NOW.replace(hour=14)),
        refused("max_age_seconds was 86400, is 3600", max_age_seconds=3600),
        refused('rules.none was not set, is "event_type IS NULL"', rules={"none": "event_type IS NULL"}),
        refused('lake_format was "delta", is "parquet"', lake_format="parquet"),
        refused("input more.jsonl is new", more="more.jsonl"),
        refused("input events.jsonl changed (size_bytes was ", content=lines([event(1), event(2)])),
        refused('key was "', key="another"),
    ],
)
def test_an_output_of_something_else_is_refused_and_left_alone(
    changes: dict[str, Any], difference: str, done: Path, tmp_path: Path, key: Path
) -> None:
    before = everything(done / "out")
    settings = dict(changes)
    inputs = [tmp_path / "events.jsonl"]
    inputs[0].write_bytes(settings.pop("content", lines([event(1)])))
    if "more" in settings:
        inputs.append(tmp_path / settings.pop("more"))
        inputs[-1].write_bytes(lines([event(3)]))
    if "key" in settings:
        key = tmp_path / settings.pop("key")
        Key(key, create=True)
    with pytest.raises(ConfigError) as error:
        run(inputs, done / "out", key, **settings)
    assert difference in str(error.value)
    assert "Name another --output" in str(error.value)
    assert everything(done / "out") == before


def test_without_a_reference_time_the_first_start_counts_for_every_rerun(
    tmp_path: Path, key: Path, warm: None
) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(lines([event(1), event(2, timestamp="2026-01-02T00:00:00Z")]))
    config = BatchConfig(input=[str(source)], output=str(tmp_path / "out"), key_file=str(key))
    first = run_batch(config, clock=lambda: NOW)
    second = run_batch(config, clock=lambda: NOW.replace(year=2030))
    assert (first.now, second.now) == (NOW, NOW)
    assert first.now_given is False
    assert second.already_done
    assert second.ledger.rejected == {"time": {"stale": 1}}
    assert {row["ingest_time"] for row in rows(tmp_path / "out", "events")} == {NOW}


# The same rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"split_bytes": 25_000, "shards": 1}, {"split_bytes": 50_001, "shards": 3}, {"compression": "none"}],
    ids=str,
)
def test_how_the_work_is_cut_changes_no_row(
    settings: dict[str, Any], small: Simulated, undisturbed: Path, tmp_path: Path, key: Path, warm: None
) -> None:
    run(small.path, tmp_path / "out", key, now=small.truth["now"], **settings)
    for name in ("events", "quarantine"):
        assert rows(tmp_path / "out", name) == rows(undisturbed, name)
    assert files(tmp_path / "out", "metrics") == files(undisturbed, "metrics")
    assert ledger(tmp_path / "out") == ledger(undisturbed)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_compression_changes_no_row(
    compress: Callable[[bytes], bytes],
    small: Simulated,
    undisturbed: Path,
    tmp_path: Path,
    key: Path,
    warm: None,
) -> None:
    half = len(small.data) // 2
    source = tmp_path / small.path.name
    source.write_bytes(compress(small.data[:half]) + compress(small.data[half:]))
    run(source, tmp_path / "out", key, now=small.truth["now"])
    for name in ("events", "quarantine"):
        assert rows(tmp_path / "out", name) == rows(undisturbed, name)


def test_the_order_in_which_files_are_named_changes_nothing(
    small: Simulated, tmp_path: Path, key: Path, warm: None
) -> None:
    documents = small.data.splitlines(keepends=True)
    paths = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(b"".join(documents[i::3]))
    run(paths, tmp_path / "forward", key, now=small.truth["now"])
    run([paths[2], paths[0], paths[1]], tmp_path / "other", key, now=small.truth["now"])
    assert files(tmp_path / "forward") == files(tmp_path / "other")
    found = ledger(tmp_path / "forward")["rejected"]["dedupe"]
    assert sum(found.values()) == small.truth["classes"]["duplicate"] + small.truth["classes"]["conflict"]


def test_formats_may_be_mixed_and_give_the_same_events(tmp_path: Path, key: Path, warm: None) -> None:
    def some(first: int) -> list[dict[str, Any]]:
        return [
            event(first + i, page_url=f"https://shop.example/p/{i}?a=1,2", user_agent='A "quoted" agent')
            for i in range(30)
        ]

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines(some(0)))
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, list(some(100)[0]))
    writer.writeheader()
    writer.writerows(some(100))
    (tmp_path / "in" / "b.csv.gz").write_bytes(gzip.compress(sheet.getvalue().encode()))
    pq.write_table(pa.Table.from_pylist(some(200)), tmp_path / "in" / "c.parquet", row_group_size=7)
    schema = {"type": "record", "name": "e", "fields": [{"name": n, "type": "string"} for n in some(300)[0]]}
    with open(tmp_path / "in" / "d.avro", "wb") as file:
        fastavro.writer(file, schema, some(300), codec="deflate", sync_interval=400)
    (tmp_path / "in" / "e.jsonl.zst").write_bytes(
        zstandard.compress(lines([some(0)[3], some(200)[4] | {"event_type": "other"}]))
    )

    run(tmp_path / "in", tmp_path / "out", key, split_bytes=1024)

    assert ledger(tmp_path / "out") == {
        "rows_in": 122,
        "accepted": 120,
        "rejected": {"dedupe": {"duplicate": 1, "duplicate_conflict": 1}},
        "balanced": True,
    }
    found = table(tmp_path / "out", "events").to_pylist()
    by_origin: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        kept = {k: v for k, v in row.items() if k not in ("origin", "event_id", "event_time", "user_id")}
        by_origin.setdefault(row["origin"], []).append(kept)
    assert list(by_origin) == ["a.jsonl", "b.csv.gz", "c.parquet", "d.avro"]
    header = [row | {"origin_position": row["origin_position"] - 1} for row in by_origin["b.csv.gz"]]
    assert by_origin["a.jsonl"] == by_origin["c.parquet"] == by_origin["d.avro"]
    assert by_origin["a.jsonl"] in (by_origin["b.csv.gz"], header)
    lost = rows(tmp_path / "out", "quarantine")
    assert {(row["origin"], row["reason"]) for row in lost} == {
        ("e.jsonl.zst", "duplicate"),
        ("e.jsonl.zst", "duplicate_conflict"),
    }


def test_rows_of_the_users_own_shape_are_mapped(tmp_path: Path, key: Path, warm: None) -> None:
    (tmp_path / "sales.csv").write_text("id,when,who,kind\n1,2026-01-05T12:00:00Z,ann,click\n")
    mapping = {
        "event_id": {"generate": "content"},
        "event_time": "when",
        "user_id": "who",
        "event_type": "kind",
    }
    run(tmp_path / "sales.csv", tmp_path / "out", key, mapping=mapping)
    (row,) = rows(tmp_path / "out", "events")
    assert row["user_id"] == Key(key).token("ann")
    assert row["event_time"] == datetime(2026, 1, 5, 12, tzinfo=UTC)
    assert row["custom_data"] == '{"id":"1"}'


def test_profiles_are_joined_by_token_and_show_in_the_lake(tmp_path: Path, key: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,tier\nuser-1,gold\nuser-2,silver\n")
    source = tmp_path / "events.jsonl"
    source.write_bytes(lines(event(i) for i in range(7)))
    result = run(source, tmp_path / "out", key, profiles={"path": str(tmp_path / "users.csv")})
    tiers = {row["origin_position"]: row["profile_tier"] for row in rows(tmp_path / "out", "events")}
    assert tiers == {1: None, 2: "gold", 3: "silver", 4: None, 5: None, 6: None, 7: None}
    assert result.counts["enrich.profile_missing"] == 5
    (tmp_path / "users.csv").write_text("user_id,tier\nuser-1,gold\nuser-2,gold\n")
    with pytest.raises(ConfigError, match="profiles_checksum was"):
        run(source, tmp_path / "out", key, profiles={"path": str(tmp_path / "users.csv")})


def test_rules_may_name_profile_columns_and_wrong_ones_are_refused_before_anything_is_written(
    tmp_path: Path, key: Path
) -> None:
    (tmp_path / "users.csv").write_text("user_id,tier\nuser-1,gold\n")
    source = tmp_path / "events.jsonl"
    source.write_bytes(lines(event(i) for i in range(3)))
    settings: dict[str, Any] = {"profiles": {"path": str(tmp_path / "users.csv")}}
    with pytest.raises(ConfigError, match="did you mean 'profile_tier'"):
        run(source, tmp_path / "out", key, filter={"gold": "profile_teir = 'gold'"}, **settings)
    assert not (tmp_path / "out").exists()
    run(source, tmp_path / "out", key, filter={"gold": "profile_tier = 'gold'"}, **settings)
    assert ledger(tmp_path / "out")["rejected"] == {"filter": {"gold": 1}}


# Privacy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [None, "weblog"])
def test_no_personal_data_is_in_clear_anywhere(
    family: str | None,
    tmp_path: Path,
    key: Path,
    warm: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    simulation = simulate(700, 31, fault_rate=0.6, **({"families": [family]} if family else {}))
    data = b"".join(simulation)
    source = tmp_path / ("access.log" if family else "events.jsonl")
    source.write_bytes(data)
    clear = data.decode("utf-8", "replace")
    secrets = set(re.findall(r"[a-z]+\.[a-z]+\d*(?:@|%40)[a-z]+\.[a-z.]+", clear))
    secrets |= set(re.findall(r"\b(?:\d{4} ){3}\d{4}\b|\b[45]\d{15}\b", clear))
    addresses = set(re.findall(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", clear))
    secrets |= {a for a in addresses if not a.endswith(".0") and int(a.split(".")[0]) < 224} - {"1.2.3.4"}
    secrets |= set(re.findall(r'"(?:user_id|id|account_id|counterparty)":"([^"\\]{6,})"', clear))
    versions = set(re.findall(r"(?:[A-Za-z]+/|[Vv]ersion )(\d+\.\d+\.\d+\.\d+)", clear))
    secrets -= versions
    assert len(secrets) > 40

    with caplog.at_level(logging.DEBUG):
        run(source, tmp_path / "out", key, now=simulation.summary.now, split_bytes=60_000)

    written = texts(tmp_path / "out")
    assert [s for s in sorted(secrets) if s in written] == []
    said = caplog.text + "".join(capfd.readouterr())
    assert [s for s in sorted(secrets) if s in said] == []
    assert "[email]" in written
    assert "[card]" in written

    secret = Key(key)
    documents = data.split(b"\n")
    sealed = 0
    for row in rows(tmp_path / "out", "quarantine"):
        assert (row["document"] is None) == (row["stage"] == "dedupe")
        if row["document"] is not None:
            assert secret.unseal(row["document"]) == documents[row["origin_position"] - 1]
            sealed += 1
    assert sealed == sum(
        simulation.summary.classes[n] for n in ("malformed", "unknown_schema", "invalid", "stale", "future")
    )


# The real log ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    out = tmp_path_factory.mktemp("real") / "out"
    run(LOG, out, key, now="2015-05-20T21:06:00Z", max_age_seconds=7 * 86_400, format="weblog")
    return out


@pytest.mark.parametrize("log", LOGS, ids=lambda p: p.name)
def test_every_line_of_the_real_log_arrives(log: Path, real: Path) -> None:
    documents = gzip.decompress(log.read_bytes()).splitlines()
    found = ledger(real)
    assert found["balanced"] is True
    assert found["rows_in"] == len(documents) == 10_000
    events, lost = table(real, "events"), table(real, "quarantine")
    positions = events["origin_position"].to_pylist() + lost["origin_position"].to_pylist()
    assert sorted(positions) == list(range(1, 10_001))
    assert found["accepted"] > 9_990
    ids = dict(zip(events["origin_position"].to_pylist(), events["event_id"].to_pylist(), strict=True))
    assert len(set(ids.values())) == len(ids)
    repeated = Counter(documents)
    again = [i for i, line in enumerate(documents, 1) if repeated[line] > 1]
    assert sum(n - 1 for n in repeated.values()) == 19
    assert all(i in ids for i in again)


@pytest.mark.parametrize("log", LOGS, ids=lambda p: p.name)
def test_the_real_log_is_masked_and_enriched(log: Path, real: Path) -> None:
    hosts = {line.split()[0].decode() for line in gzip.decompress(log.read_bytes()).splitlines()}
    assert len(hosts) > 1_700
    kept = set(re.findall(r"(?<![\d.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])", texts(real))) & hosts
    assert {host for host in kept if not host.endswith(".0")} == set()
    events = table(real, "events")
    assert all(a.endswith(".0") for a in events["ip_address"].to_pylist())
    filled = {
        n: 1 - events[n].null_count / events.num_rows
        for n in ("browser", "os", "country", "is_bot", "device_type")
    }
    assert filled["country"] > 0.99
    assert filled["browser"] > 0.85
    assert filled["is_bot"] > 0.9
    assert filled["os"] > 0.6
    assert filled["device_type"] > 0.5


@pytest.mark.parametrize("log", LOGS, ids=lambda p: p.name)
def test_counts_per_minute_of_the_real_log_equal_a_counter(log: Path, real: Path) -> None:
    expected: Counter[tuple[datetime, str]] = Counter()
    for line in gzip.decompress(log.read_bytes()).decode().splitlines():
        match = LOG_LINE.match(line)
        if match is None:
            continue
        time = datetime.strptime(match[2], "%d/%b/%Y:%H:%M:%S %z").replace(second=0)
        request = match[3].split(" ")
        kind = "page_view" if request[0] == "GET" else "request"
        kind = "http_error" if int(match[4]) >= 400 else "asset" if ASSET.search(request[1]) else kind
        expected[(time, kind)] += 1
    found = metric(real, "events_per_minute").to_pylist()
    assert {(r["window_start"], r["event_type"]): r["events"] for r in found} == dict(expected)


@pytest.mark.parametrize("log", LOGS, ids=lambda p: p.name)
def test_an_archive_without_its_age_is_mostly_stale(log: Path, tmp_path: Path, key: Path, warm: None) -> None:
    run(log, tmp_path / "out", key, now="2015-05-20T21:06:00Z")
    times = [
        datetime.strptime(re.search(r"\[([^\]]+)\]", line)[1], "%d/%b/%Y:%H:%M:%S %z")  # type: ignore[index]
        for line in gzip.decompress(log.read_bytes()).decode().splitlines()
    ]
    limit = datetime(2015, 5, 19, 21, 6, tzinfo=UTC)
    found = ledger(tmp_path / "out")
    assert found["rejected"]["time"]["stale"] == sum(t < limit for t in times)
    assert found["balanced"] is True
