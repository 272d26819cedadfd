from pathlib import Path

import pytest

from headrace.runners.checkpoint_files import newest_checkpoint
from headrace.schemas.errors import ConfigError


def make(folder: Path, name: str, *, whole: bool = True) -> Path:
    path = folder / "job1" / name
    path.mkdir(parents=True)
    if whole:
        (path / "_metadata").write_bytes(b"m")
    return path


def test_the_newest_whole_checkpoint_counts_by_number(tmp_path: Path) -> None:
    for name in ("chk-2", "chk-9", "shared", "taskowned", "chk-old"):
        make(tmp_path, name)
    newest = make(tmp_path, "chk-10")
    make(tmp_path, "chk-11", whole=False)
    assert newest_checkpoint(tmp_path, "job1") == newest.as_uri()
    assert newest_checkpoint(tmp_path.as_uri(), "job1") == newest.as_uri()
    assert newest_checkpoint(f"file:{tmp_path}", "job1") == newest.as_uri()


def test_none_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, "job1") is None
    make(tmp_path, "chk-1", whole=False)
    assert newest_checkpoint(tmp_path, "job1") is None


def test_folders_elsewhere_are_left_to_the_user() -> None:
    for place in ("s3://bucket/checkpoints", "file://host/checkpoints"):
        with pytest.raises(ConfigError, match="is not a folder of this machine; look there yourself"):
            newest_checkpoint(place, "job1")
