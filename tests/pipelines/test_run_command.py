import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.connectors.ledger import Ledger
from headrace.pipelines import batch
from headrace.pipelines.cli import app, load
from headrace.pipelines.config import BatchConfig, load_config
from headrace.pipelines.progress import Progress
from headrace.pipelines.summary import BatchResult
from headrace.runners.options import _parser
from headrace.schemas.errors import InputError
from tests.pipelines.small_output import result, write_output


@dataclass
class FakeBatch:
    """Stands for the pipeline: notes what it is asked for, reports once, returns a result."""

    output: Path
    changes: dict[str, object] = field(default_factory=dict)
    error: Exception | None = None
    config: BatchConfig | None = None
    beam_args: Sequence[str] = ()
    reports: bool = False

    def __call__(
        self, config: BatchConfig, *, beam_args: Sequence[str], on_progress: Callable[[Progress], None] | None
    ) -> BatchResult:
        self.config, self.beam_args, self.reports = config, beam_args, on_progress is not None
        if on_progress is not None:
            on_progress(Progress(1, 0, 1, 2, 1.0, "reading"))
        if self.error is not None:
            raise self.error
        return result(self.output, **self.changes)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBatch:
    write_output(tmp_path / "out")
    fake = FakeBatch(tmp_path / "out")
    monkeypatch.setattr(batch, "run_batch", fake)
    return fake


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["run", "batch", *args])
    return done.exit_code, done.stdout, done.stderr


GIVEN = ("--input", "a.jsonl", "--output", "out")


def test_options_become_the_configuration(fake: FakeBatch) -> None:
    code, _, error = run(
        "--input", "a.jsonl", "--input", "b/*.gz", "--output", "out", "--format", "jsonl", "--schema", "commerce:1.0.0",
        "--now", "2024-05-17T12:00:00Z", "--max-age-seconds", "7", "--key-file", "k", "--lake-format", "parquet", "--shared-paths",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert fake.config == BatchConfig(
        input=["a.jsonl", "b/*.gz"],
        output="out",
        format="jsonl",
        schema="commerce:1.0.0",
        now=datetime(2024, 5, 17, 12, tzinfo=UTC),
        max_age_seconds=7,
        key_file="k",
        lake_format="parquet",
        shared_paths=True,
    )
    assert fake.beam_args == ["--runner=direct"]


def test_options_go_over_the_file_and_absent_ones_do_not(fake: FakeBatch, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: [x]\noutput: y\nshared_paths: true\nmax_age_seconds: 9\n")
    assert run("--config", str(file), "--output", "z")[0] == 0
    assert fake.config == BatchConfig(input=["x"], output="z", shared_paths=True, max_age_seconds=9)


def test_options_of_beam_and_the_runner_are_passed_on(fake: FakeBatch) -> None:
    code, _, _ = run(*GIVEN, "--runner", "portable", "--job_endpoint", "h:1", "--environment_type=LOOPBACK")
    assert code == 0
    assert fake.beam_args == ["--runner=portable", "--job_endpoint", "h:1", "--environment_type=LOOPBACK"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--inptu", "x"], "error: unknown option --inptu; did you mean '--input'?"),
        (
            ["--max_age_seconds=1"],
            "error: unknown option --max_age_seconds; did you mean '--max-age-seconds'?",
        ),
        (
            ["--direct_num_worker=2"],
            "error: unknown option --direct_num_worker; did you mean '--direct_num_workers'?",
        ),
        (["other.jsonl"], "error: unexpected argument 'other.jsonl'"),
        (["--now", "noon"], "error: --now: now: 'noon' is not a time; write it as 2024-05-17T12:00:00Z"),
        (["--format", "jsn"], "error: --format: format: text 'jsn' is not possible; did you mean 'jsonl'?"),
        (["--schema", "weblgo"], "error: unknown schema 'weblgo'; did you mean weblog?"),
        (
            ["--config", "missing.yaml"],
            "error: configuration missing.yaml can't be read: No such file or directory",
        ),
    ],
)
def test_wrong_use_is_refused_before_anything_runs(args: list[str], message: str, fake: FakeBatch) -> None:
    assert run(*GIVEN, *args) == (2, "", message + "\n")
    assert fake.config is None


def test_input_and_output_are_needed(fake: FakeBatch) -> None:
    assert run("--output", "o") == (
        2, "", "error: no input: name files with --input PATTERN or `input` in the configuration\n",
    )  # fmt: skip
    assert "no output: name a folder with --output" in run("--input", "i")[2]


def test_the_printed_configuration_is_the_one_in_effect(fake: FakeBatch, tmp_path: Path) -> None:
    code, text, _ = run("--input", "a", "--max-age-seconds", "5", "--print-config")
    assert code == 0 and fake.config is None
    (tmp_path / "printed.yaml").write_text(text)
    assert load_config(tmp_path / "printed.yaml") == BatchConfig(input=["a"], max_age_seconds=5)
    assert (
        "# Events older than the reference time by more are rejected as stale.\nmax_age_seconds: 5\n" in text
    )


def test_the_summary_ends_with_the_next_command(fake: FakeBatch) -> None:
    code, text, error = run(*GIVEN)
    assert (code, error) == (0, "")
    assert "ledger     balanced: 4 = 2 + 2" in text
    assert f"explain 'it'\"'\"'s.jsonl:3' --output {fake.output}" in text


def test_json_is_one_object_on_standard_output(fake: FakeBatch) -> None:
    code, text, error = run(*GIVEN, "--json")
    assert (code, error) == (0, "")
    assert len(text.splitlines()) == 1
    assert json.loads(text)["rejected"] == {"validate": {"invalid": 1}, "time": {"stale": 1}}
    assert fake.reports


def test_quiet_says_nothing(fake: FakeBatch) -> None:
    assert run(*GIVEN, "--quiet") == (0, "", "")
    assert not fake.reports
    code, text, _ = run(*GIVEN, "--quiet", "--json")
    assert code == 0 and json.loads(text)["balanced"] is True


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]])
def test_a_ledger_that_does_not_balance_ends_with_3(flags: list[str], fake: FakeBatch) -> None:
    fake.changes = {"ledger": Ledger(5, 2, {"validate": {"invalid": 1}, "time": {"stale": 1}})}
    code, text, error = run(*GIVEN, *flags)
    assert code == 3
    assert error.startswith("error: rows in 5 ≠ accepted 2 + rejected 2: 1 row is missing")
    if "--json" in flags:
        assert json.loads(text)["balanced"] is False


def test_an_input_that_cannot_be_read_ends_with_2(fake: FakeBatch) -> None:
    fake.error = InputError("a.jsonl does not exist")
    assert run(*GIVEN) == (2, "", "error: a.jsonl does not exist\n")


def test_no_option_of_ours_hides_one_of_beam() -> None:
    ours = {name for parameter in load("run").commands["batch"].params for name in parameter.opts}
    assert ours & set(_parser()._option_string_actions) == {"--runner"}
