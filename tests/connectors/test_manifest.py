import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from headrace.connectors import manifest as module
from headrace.connectors import output_lock
from headrace.connectors.atomic_file import OutputError
from headrace.connectors.manifest import InputRecord, load_manifest, open_output
from headrace.connectors.output_lock import OutputLock
from headrace.schemas.errors import ConfigError

START = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)
A = InputRecord("a.jsonl", 10, "aa", "jsonl", "plain")
B = InputRecord("b/b.csv.gz", 20, "bb", "csv", "gzip")
CONFIGURATION = {"deduplicate": {"horizon_hours": 24}, "mask": ["user_id"], "profiles": None}


def claim(out, files=(A, B), configuration=CONFIGURATION, now=None, at=START):
    return open_output(out, files=files, configuration=configuration, now=now, clock=lambda: at)


def refusal(out, **changes):
    with pytest.raises(ConfigError) as caught:
        claim(out, **changes)
    return str(caught.value)


def test_the_first_claim_is_saved(tmp_path):
    with claim(tmp_path / "out", files=[B, A]) as manifest:
        saved = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert saved == {
        "format": 1,
        "headrace": manifest.headrace,
        "created": "2026-01-05T12:30:00Z",
        "status": "started",
        "now": "2026-01-05T12:30:00Z",
        "fingerprint": manifest.fingerprint,
        "inputs": [
            {
                "origin": "a.jsonl",
                "size_bytes": 10,
                "checksum": "aa",
                "format": "jsonl",
                "compression": "plain",
            },
            {
                "origin": "b/b.csv.gz",
                "size_bytes": 20,
                "checksum": "bb",
                "format": "csv",
                "compression": "gzip",
            },
        ],
        "configuration": CONFIGURATION,
    }
    assert len(manifest.fingerprint) == 32
    assert manifest.headrace.count(".") >= 1
    assert load_manifest(tmp_path / "out") == manifest


def test_a_rerun_gets_the_saved_reference_time(tmp_path):
    with claim(tmp_path) as first:
        pass
    with claim(tmp_path, files=[B, A], at=START + timedelta(days=3)) as again:
        assert again == first
        assert (again.now, again.created) == (START, START)
    with claim(tmp_path, now=START.astimezone(timezone(timedelta(hours=5)))) as third:
        assert third.now == START


def test_a_given_reference_time_is_kept_in_utc(tmp_path):
    given = datetime(2015, 5, 20, 2, tzinfo=timezone(timedelta(hours=2)))
    with claim(tmp_path, now=given) as manifest:
        assert (manifest.now, manifest.created) == (given, START)
    assert json.loads((tmp_path / "manifest.json").read_text())["now"] == "2015-05-20T00:00:00Z"
    assert "now was 2015-05-20T00:00:00Z, is 2026-01-05T12:30:00Z" in refusal(tmp_path, now=START)
    with claim(tmp_path) as manifest:
        assert manifest.now == given


def test_a_reference_time_without_zone_is_refused_and_a_clock_without_is_utc(tmp_path):
    message = refusal(tmp_path / "out", now=datetime(2026, 1, 5))
    assert message == "now is 2026-01-05T00:00:00 without a zone; add one, for example 2026-01-05T00:00:00Z"
    assert not (tmp_path / "out").exists()
    with claim(tmp_path / "out", at=datetime(2026, 1, 5)) as manifest:
        assert manifest.now == datetime(2026, 1, 5, tzinfo=UTC)


def test_the_fingerprint_is_that_of_content_and_configuration(tmp_path):
    def fingerprint(name, **changes):
        with claim(tmp_path / name, **changes) as manifest:
            return manifest.fingerprint

    first = fingerprint("one")
    assert fingerprint("two", files=[B, A], now=START + timedelta(1), at=START + timedelta(9)) == first
    assert fingerprint("three", configuration=dict(reversed(CONFIGURATION.items()))) == first
    others = {
        fingerprint("four", files=[A]),
        fingerprint("five", files=[A, replace(B, checksum="bc")]),
        fingerprint("six", configuration={**CONFIGURATION, "mask": []}),
    }
    assert len(others | {first}) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"files": [A]}, "input b/b.csv.gz is gone"),
        ({"files": [A, B, replace(A, origin="c")]}, "input c is new"),
        (
            {"files": [replace(A, size_bytes=11, checksum="ab"), B]},
            "input a.jsonl changed (size_bytes was 10, is 11, checksum was aa, is ab)",
        ),
        (
            {"configuration": {**CONFIGURATION, "deduplicate": {"horizon_hours": 1}}},
            "deduplicate.horizon_hours was 24, is 1",
        ),
        ({"configuration": {**CONFIGURATION, "mask": []}}, 'mask was ["user_id"], is []'),
        ({"configuration": {**CONFIGURATION, "new": {}}}, "new was not set, is {}"),
        ({"configuration": {**CONFIGURATION, "profiles": "p.csv"}}, 'profiles was null, is "p.csv"'),
        ({"configuration": {}}, "deduplicate.horizon_hours was 24, is not set"),
    ],
)
def test_another_input_or_configuration_is_refused_with_the_difference(tmp_path, changes, expected):
    claim(tmp_path).release()
    before = (tmp_path / "manifest.json").read_bytes()
    message = refusal(tmp_path, **changes)
    assert message.startswith(f"output {tmp_path} was made from another input or configuration: ")
    assert expected in message
    assert message.endswith(f". Name another --output, or delete {tmp_path} to start over")
    assert (tmp_path / "manifest.json").read_bytes() == before
    claim(tmp_path).release()


def test_many_differences_are_cut(tmp_path):
    claim(tmp_path).release()
    files = [replace(A, origin=f"new-{i:02d}") for i in range(20)]
    message = refusal(tmp_path, files=files)
    assert "input new-05 is new; and 14 more. Name" in message


def test_another_version_of_headrace_is_refused(tmp_path, monkeypatch):
    claim(tmp_path).release()
    monkeypatch.setattr(module, "version", lambda _: "9.9.9")
    assert ", is 9.9.9. Name another" in refusal(tmp_path)


def test_the_status_advances_and_never_falls_back(tmp_path, monkeypatch):
    with claim(tmp_path) as manifest:
        manifest.advance("committed")
        manifest.advance("started")
        assert load_manifest(tmp_path).status == "committed"
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OutputError, match=r"manifest\.json can't be written: No space left"):
                manifest.advance("done")
        assert manifest.status == load_manifest(tmp_path).status == "committed"
        manifest.advance("done")
        with pytest.raises(ValueError):
            manifest.advance("finished")
    with claim(tmp_path) as again:
        assert again.status == "done"


def test_an_output_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    message = refusal(tmp_path)
    assert message == (
        f"output {tmp_path} is not empty and not made by headrace (it holds thesis.txt); name another --output"
    )
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_run_killed_before_its_manifest_can_start_again(tmp_path):
    (tmp_path / "_lock").write_text("1\n")
    (tmp_path / ".manifest.json.7-0123abcd.tmp").write_text("{")
    claim(tmp_path).release()
    assert load_manifest(tmp_path).status == "started"


def test_impossible_outputs_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"output {tmp_path}/file is a file; name a folder"
    message = refusal(tmp_path / "no" / "out")
    assert f"folder {tmp_path}/no does not exist; create it, or name another --output" in message
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert "can't be written to: Permission denied; fix its permissions" in refusal(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
        assert f"can't be made: Permission denied; fix the permissions of {tmp_path} or" in refusal(
            tmp_path / "out"
        )
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(30, "no")))
        assert "can't be written to: Read-only file system; fix" in refusal(tmp_path / "out")


def test_impossible_inputs_and_configurations_are_refused(tmp_path):
    assert refusal(tmp_path, files=[A, A]).startswith(
        "two inputs are named a.jsonl; read them from a common root"
    )
    assert "configuration holds what JSON can't" in refusal(tmp_path, configuration={"a": START})
    assert "configuration holds what JSON can't" in refusal(tmp_path, configuration={"a": float("nan")})
    claim(tmp_path).release()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: "{", "is damaged"),
        (lambda saved: "[]", "is damaged"),
        (lambda saved: json.dumps({**saved, "now": "yesterday"}), "is damaged"),
        (lambda saved: json.dumps({**saved, "inputs": []}), "was altered: its fingerprint does not match"),
        (lambda saved: json.dumps({**saved, "status": "lost"}), "was altered"),
        (
            lambda saved: json.dumps({**saved, "format": 2, "headrace": "7.0"}),
            "this headrace knows 1; use headrace 7.0",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, change, message):
    claim(tmp_path).release()
    path = tmp_path / "manifest.json"
    path.write_text(change(json.loads(path.read_text())))
    assert message in refusal(tmp_path)
    OutputLock(tmp_path).release()


def test_a_missing_or_unreadable_manifest_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is no output of headrace: it has no manifest\.json"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ConfigError, match=r"manifest\.json can't be read: Is a directory"):
        load_manifest(tmp_path)


def test_two_runs_never_share_an_output(tmp_path):
    with claim(tmp_path):
        assert refusal(tmp_path) == (
            f"another run (process {os.getpid()}) is writing to {tmp_path}; wait for it to end, or name another --output"
        )
    claim(tmp_path).release()


def test_the_lock_ends_with_its_process(tmp_path):
    script = (
        "import pathlib, sys\nfrom headrace.connectors.output_lock import OutputLock\n"
        "lock = OutputLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert f"another run (process {process.pid}) is writing" in refusal(tmp_path)
    finally:
        process.kill()
        process.communicate()
    claim(tmp_path).release()


def test_a_file_system_that_can_not_lock_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "no")))
    assert "lies on a file system that can't lock files (Operation not supported), so two runs" in refusal(
        tmp_path
    )
