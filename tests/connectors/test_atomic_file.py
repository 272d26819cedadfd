import errno
import os
import pickle
import stat

import pytest

from headrace.connectors.atomic_file import (
    AtomicFile,
    OutputError,
    naming,
    remove_temporaries,
    replace_file,
    sync,
)


def test_a_file_has_its_name_only_after_commit(tmp_path):
    file = AtomicFile(tmp_path / "new" / "a.json")
    file.temporary.write_text("whole")
    assert not file.path.exists()
    file.commit()
    assert file.path.read_text() == "whole"
    assert [p.name for p in file.path.parent.iterdir()] == ["a.json"]


def test_two_attempts_never_share_a_temporary(tmp_path):
    one, two = AtomicFile(tmp_path / "a"), AtomicFile(tmp_path / "a")
    one.temporary.write_text("one")
    two.temporary.write_text("two")
    two.commit()
    one.commit()
    assert (tmp_path / "a").read_text() == "one"


def test_a_temporary_is_hidden_and_found_again(tmp_path):
    file = AtomicFile(tmp_path / "deep" / "a.parquet")
    file.temporary.write_text("half")
    (tmp_path / ".hidden.tmp").write_text("the user's")
    assert file.temporary.name.startswith(".a.parquet.")
    assert remove_temporaries(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden.tmp", "deep"]


def test_a_failed_replacement_leaves_the_old_content_and_names_path_cause_and_fix(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    replace_file(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        replace_file(path, b"new")
    assert str(caught.value) == (
        f"{path} can't be written: No space left on device; make room or fix the permissions, then run the same command again"
    )
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["ledger.json"]


def test_a_failed_rename_removes_the_temporary(tmp_path):
    (tmp_path / "a" / "full").mkdir(parents=True)
    file = AtomicFile(tmp_path / "a")
    file.temporary.write_text("x")
    with pytest.raises(OutputError, match="can't be written: Is a directory"):
        file.commit()
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/a can't be written: (Not a directory|File exists)"):
        AtomicFile(tmp_path / "file" / "a")
    with pytest.raises(OutputError, match="gone can't be written: No such file"):
        sync(tmp_path / "gone")


def test_an_output_error_crosses_processes_and_nests(tmp_path):
    with pytest.raises(OutputError) as caught, naming("outer"), naming("inner"):
        raise OSError("no number")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert str(copy).startswith("inner can't be written: no number;")


def test_files_are_made_with_the_usual_permissions(tmp_path):
    replace_file(tmp_path / "a", b"")
    usual = tmp_path / "b"
    usual.write_text("")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
