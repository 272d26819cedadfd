import json
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from headrace.connectors.stream_output import FILE, JobRecord, StreamOutput, open_stream_output
from headrace.schemas.errors import ConfigError

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def record(output: StreamOutput, source: str = "kafka://h:1/t") -> JobRecord:
    clock = lambda: NOON.astimezone(timezone(timedelta(hours=2)))  # noqa: E731
    return JobRecord.new(
        output.jobs, source=source, layout={"readers": 2}, configuration={"schema": None}, clock=clock
    )


def test_a_folder_is_made_and_remembers_its_jobs(tmp_path: Path) -> None:
    with open_stream_output(tmp_path / "out") as output:
        assert output.last is None and output.out == tmp_path / "out"
        output.add(record(output))
        output.add(record(output, "dir:x"))
        assert [job.name for job in output.jobs] == ["s0001-20260105-120000", "s0002-20260105-120000"]
        assert output.jobs[0].started == "2026-01-05T12:00:00Z"
        output.last.state = "file:/savepoint"  # type: ignore[union-attr]
        output.save()
    with open_stream_output(tmp_path / "out") as again:
        assert again.jobs == output.jobs
        assert again.last is not None and again.last.state == "file:/savepoint"
        assert again.last.layout == {"readers": 2} and again.last.source == "dir:x"


def test_a_job_that_was_not_added_is_not_kept(tmp_path: Path) -> None:
    with open_stream_output(tmp_path / "out") as output:
        record(output)
    assert not (tmp_path / "out" / FILE).exists()


def test_one_stream_at_a_time(tmp_path: Path) -> None:
    with open_stream_output(tmp_path / "out"), pytest.raises(ConfigError, match=r"in use|another"):
        open_stream_output(tmp_path / "out")
    open_stream_output(tmp_path / "out").release()


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    output = open_stream_output(tmp_path / "out")
    output.release()
    output.release()


def test_a_file_and_a_missing_parent_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        open_stream_output(tmp_path / "file")
    with pytest.raises(
        ConfigError, match=r"folder .*/none does not exist; create it, or name another --output"
    ):
        open_stream_output(tmp_path / "none" / "out")


def test_a_folder_with_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not empty and not a stream's \(it holds ledger.json\)"):
        open_stream_output(tmp_path)
    assert os.listdir(tmp_path) == ["ledger.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1}', "is damaged"),
        ('{"format": 1, "jobs": [{"nme": "x"}]}', "is damaged"),
        (
            '{"format": 7, "headrace": "9.1", "jobs": []}',
            "has format 7, this headrace knows 1; use headrace 9.1",
        ),
    ],
)
def test_a_damaged_file_is_not_overwritten(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=message):
        open_stream_output(tmp_path)
    assert (tmp_path / FILE).read_text() == content
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "jobs": []}))
    open_stream_output(tmp_path).release()
