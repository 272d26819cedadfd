"""Finds retained checkpoints on disk, for a job whose JobManager is dead and can't be asked."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.schemas.errors import ConfigError


def newest_checkpoint(checkpoints: str | Path, job: str) -> str | None:
    """Returns the newest complete checkpoint of a job as a ``file:`` URL for ``--savepoint_path``; None if there is none.

    A checkpoint is complete when its ``_metadata`` is there: Flink writes it last, under another name, and renames it.

    Args:
        checkpoints: the cluster's ``state.checkpoints.dir``, a path or ``file:`` URL of this machine.
        job: Flink's id of the job.

    Raises:
        ConfigError: the folder is not on this machine.
    """
    folder = _local(str(checkpoints)) / job
    numbered = [
        (int(path.name.removeprefix("chk-")), path)
        for path in folder.glob("chk-*")
        if path.name.removeprefix("chk-").isdecimal() and (path / "_metadata").is_file()
    ]
    return max(numbered)[1].as_uri() if numbered else None


def _local(place: str) -> Path:
    if "://" not in place and not place.startswith("file:"):
        return Path(place).absolute()
    parts = urlsplit(place)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"{place} is not a folder of this machine; look there yourself and name the newest chk-NUMBER that has a _metadata "
            "with --savepoint_path"
        )
    return Path(unquote(parts.path))
