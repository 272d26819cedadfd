import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headrace.connectors.ledger import Ledger
from headrace.pipelines import stream
from headrace.pipelines.cli import app
from headrace.pipelines.config_file import load_settings
from headrace.pipelines.stream import StreamResult
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.streaming.stream_progress import StreamProgress

GIVEN = ("--source", "dir:in", "--output", "out")


@dataclass
class FakeStream:
    """Stands for the pipeline: notes what it is asked for, reports once, returns a result."""

    ledger: Ledger | None = field(default_factory=lambda: Ledger(5, 3, {"validate": {"type": 2}}))
    config: StreamConfig | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        config: StreamConfig,
        *,
        stop: threading.Event,
        on_progress: Callable[[StreamProgress], None] | None,
        **given: Any,
    ) -> StreamResult:
        self.config, self.given = config, {**given, "reports": on_progress is not None}
        assert not stop.is_set()
        if on_progress is not None:
            on_progress(StreamProgress(5, 3, 2, None, None, None, None, 1.0, "running"))
        return StreamResult(Path("out"), "s0001-x", self.ledger, {}, 0, 2.0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    fake = FakeStream()
    monkeypatch.setattr(stream, "run_stream", fake)
    return fake


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["run", "stream", *args])
    return done.exit_code, done.stdout, done.stderr


def test_options_become_the_configuration(fake: FakeStream) -> None:
    code, _, error = run(
        *GIVEN, "--format", "weblog", "--schema", "commerce:1.0.0", "--readers", "3", "--max-age-seconds", "7",
        "--until", "10m", "--max-events", "9", "--key-file", "k", "--shared-paths", "--quiet", "--runner", "flink",
        "--rebuild-state-from", "out", "--metrics-port", "0", "--job_endpoint", "h:1", "--parallelism=2",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert fake.config == StreamConfig(
        source="dir:in", output="out", format="weblog", schema="commerce:1.0.0", readers=3, max_age_seconds=7,
        until="10m", max_events=9, key_file="k", shared_paths=True,
    )  # fmt: skip
    assert fake.given["beam_args"] == ["--runner=flink", "--job_endpoint", "h:1", "--parallelism=2"]
    assert (fake.given["rebuild_state_from"], fake.given["metrics_port"]) == ("out", 0)
    assert (fake.given["metrics_host"], fake.given["dry_run"]) == ("127.0.0.1", False)


def test_options_go_over_the_file(fake: FakeStream, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: dir:x\noutput: y\nshards: 4\nuntil: now\n")
    assert run("--config", str(file), "--output", "z", "--quiet")[0] == 0
    assert fake.config == StreamConfig(source="dir:x", output="z", shards=4, until="now")


def test_the_printed_configuration_is_the_one_in_effect(fake: FakeStream, tmp_path: Path) -> None:
    code, text, _ = run("--source", "dir:a", "--readers", "5", "--print-config")
    assert code == 0 and fake.config is None
    (tmp_path / "printed.yaml").write_text(text)
    assert load_settings(StreamConfig, tmp_path / "printed.yaml", {}) == StreamConfig(
        source="dir:a", readers=5
    )
    assert "\nreaders: 5\n" in text and "# Readers that share the source's partitions" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sorce", "x"], "unknown option --sorce; did you mean '--source'?"),
        (["--max_events=1"], "unknown option --max_events; did you mean '--max-events'?"),
        (["--paralelism=2"], "unknown option --paralelism; did you mean '--parallelism'?"),
        (["more"], "unexpected argument 'more'"),
        (
            ["--until", "tomorrow"],
            "until is 'tomorrow'; give a time with its zone (2026-01-05T13:00:00Z), `now`, or a duration (90s, 10m, 2h)",
        ),
        (["--until", "2026-01-05T13:00:00"], "without a zone; add one, for example 2026-01-05T13:00:00Z"),
        (["--schema", "weblgo"], "unknown schema 'weblgo'; did you mean weblog?"),
        (["--log-format", "xml"], "--log-format is 'xml'; it is text or json"),
        (["--config", "missing.yaml"], "configuration missing.yaml can't be read: No such file or directory"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused_before_anything_runs(args: list[str], message: str, fake: FakeStream) -> None:
    code, text, error = run(*GIVEN, *args)
    assert (code, text) == (2, "") and error.startswith("error: ") and error.endswith(message + "\n")
    assert fake.config is None


def test_source_and_output_are_needed(fake: FakeStream) -> None:
    code, _, error = run("--output", "o")
    assert code == 2 and error.startswith(
        "error: no source: name a stream with --source kafka://HOST:PORT/TOPIC"
    )
    assert run("--source", "dir:x")[2].startswith("error: no output: name a folder with --output OUT")


def test_json_is_one_object_on_standard_output(fake: FakeStream) -> None:
    code, text, _ = run(*GIVEN, "--json", "--quiet")
    assert code == 0 and len(text.splitlines()) == 1
    found = json.loads(text)
    assert (found["rows_in"], found["accepted"], found["balanced"]) == (5, 3, True)
    assert found["rejected"] == {"validate": {"type": 2}}
    assert not fake.given["reports"]


def test_the_summary_is_printed_unless_quiet(fake: FakeStream) -> None:
    code, text, error = run(*GIVEN)
    assert code == 0 and "  accepted   3\n" in text and error == ""
    assert run(*GIVEN, "--quiet") == (0, "", "")


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]])
def test_a_ledger_that_does_not_balance_ends_with_3(flags: list[str], fake: FakeStream) -> None:
    fake.ledger = Ledger(5, 2, {"validate": {"type": 2}})
    code, _, error = run(*GIVEN, *flags)
    assert code == 3 and "error: rows in 5 ≠ accepted 2 + rejected 2: 1 row is missing" in error


@pytest.mark.integration
def test_a_dry_run_makes_a_whole_job_for_dataflow_without_credentials(tmp_path: Path, key: Path) -> None:
    args = ("--source", "kafka://127.0.0.1:1/t", "--output", str(tmp_path / "out"), "--key-file", str(key))
    cloud = ("--runner", "dataflow", "--region=europe-west1", "--temp_location=gs://bucket/tmp")
    code, text, error = run(*args, "--dry-run", *cloud, "--project=proj-x")
    assert (code, error) == (0, "")
    assert text == "Checked: configuration, options and graph are sound; nothing was started\n"
    assert run(*args, "--dry_run=true", *cloud, "--project=proj-x") == (code, text, error)
    code, _, error = run(*args, "--dry-run", *cloud, "--project=X")
    assert code == 2 and "Beam refuses the runner's options" in error and "Invalid Project ID (X)" in error
    code, _, error = run(*args, *cloud, "--project=proj-x")
    assert code == 2 and "build and check the job with --dry-run" in error


def test_a_dry_run_checks_everything_without_a_source(tmp_path: Path, key: Path) -> None:
    args = ("--output", str(tmp_path / "out"), "--key-file", str(key), "--dry-run")
    code, text, error = run("--source", "kafka://127.0.0.1:1/t", *args)
    assert (code, error) == (0, "")
    assert text == "Checked: configuration, options and graph are sound; nothing was started\n"
    assert not (tmp_path / "out").exists()
    code, _, error = run("--source", "kfka://127.0.0.1:1/t", *args)
    assert code == 2 and "no source is called kfka:; known are kafka://" in error
    code, _, error = run("--source", "kafka://127.0.0.1:1/t", *args, "--runner", "prsm")
    assert code == 2 and "prism" in error
