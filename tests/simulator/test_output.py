"""Writing a simulation: files, compression, pacing by a clock, the command."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import zstandard
from typer.testing import CliRunner

from headrace.pipelines.commands.simulate import simulate as command
from headrace.schemas.errors import ConfigError
from headrace.simulator.output import write_events
from headrace.simulator.simulate import simulate


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds

    def arguments(self) -> dict[str, Callable[..., Any]]:
        return {"clock": lambda: self.now, "sleep": self.sleep}


@pytest.fixture
def cli() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_rate_paces_the_events() -> None:
    time = FakeTime()
    simulation = simulate(2000, 1, rate=100, **time.arguments())
    arrivals = [(time.now - 1000, chunk.count(b"\n")) for chunk in simulation]
    assert arrivals[-1][0] == pytest.approx(20, abs=0.2)
    done = 0
    for seconds, lines in arrivals:
        done += lines
        assert done <= 100 * seconds + 40
    assert done == 2000
    assert 100 < len(arrivals) <= 201
    assert max(time.slept) < 0.5
    assert (simulation.summary.now - simulation.summary.start).total_seconds() == 20


def test_a_slow_event_is_not_held_back_for_the_next_chunk() -> None:
    time = FakeTime()
    arrivals = []
    for chunk in simulate(10, 1, rate=0.1, **time.arguments()):
        arrivals.append(time.now - 1000)
        assert chunk.count(b"\n") <= 3
    assert arrivals[0] < 15
    assert arrivals[-1] <= 100.1


def test_a_late_writer_catches_up_without_sleeping() -> None:
    time = FakeTime()
    simulation = simulate(500, 1, rate=100, **time.arguments())
    next(simulation)
    time.now += 60
    slept = len(time.slept)
    assert sum(chunk.count(b"\n") for chunk in simulation) < 500
    assert len(time.slept) == slept


def test_rate_changes_nothing_but_the_span() -> None:
    time = FakeTime()
    paced = b"".join(simulate(300, 5, rate=10, **time.arguments()))
    assert paced == b"".join(simulate(300, 5, span="30s"))


def test_suffixes_compress_and_bytes_repeat(tmp_path: Path) -> None:
    plain = b"".join(simulate(400, 1))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        write_events(simulate(400, 1), tmp_path / name)
        write_events(simulate(400, 1), tmp_path / f"again.{name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again.{name}").read_bytes()
    assert (tmp_path / "a.jsonl").read_bytes() == plain
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert packed[3:8] == b"\0\0\0\0\0"
    with zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO((tmp_path / "a.jsonl.zst").read_bytes())
    ) as reader:
        assert reader.read() == plain


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "events.jsonl"
    target.write_bytes(b"old")
    simulation = simulate(3000, 1)

    class Broken:
        summary = simulation.summary

        def __iter__(self) -> Any:
            yield next(simulation)
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"events\.jsonl can't be written: No space left on device"):
        write_events(Broken(), target)  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_command_writes_events_truth_and_a_summary(cli: Callable[..., Any], tmp_path: Path) -> None:
    events, truth = tmp_path / "e.jsonl", tmp_path / "truth.json"
    result = cli(
        "--events", 700, "--seed", 3, "--output", events, "--truth", truth, "--anomaly", "traffic_spike@+5m"
    )
    assert result.exit_code == 0, result.output
    simulation = simulate(700, 3, anomalies=["traffic_spike@+5m"])
    assert events.read_bytes() == b"".join(simulation)
    assert json.loads(truth.read_text()) == simulation.summary.to_dict()
    assert result.stdout == ""
    assert "700 events from 2026-01-05T12:00:00Z" in result.stderr


def test_the_command_writes_to_standard_output(cli: Callable[..., Any]) -> None:
    result = cli("--events", 50, "--families", "commerce, envelope", "--no-faults", "--span", "5m")
    assert result.exit_code == 0, result.output
    expected = b"".join(simulate(50, families=["commerce", "envelope"], fault_rate=0, span="5m"))
    assert result.stdout_bytes == expected


def test_the_command_paces_in_place(cli: Callable[..., Any], tmp_path: Path) -> None:
    target = tmp_path / "live.jsonl"
    result = cli("--events", 20, "--rate", 100_000, "--output", target)
    assert result.exit_code == 0, result.output
    assert target.read_bytes().count(b"\n") == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--families", "weblog,envelope"), "simulate weblog on its own"),
        (
            ("--output", "/nowhere/at/all/e.jsonl"),
            "output /nowhere/at/all/e.jsonl can't be written: No such file",
        ),
        (
            ("--truth", "/nowhere/truth.json", "--output", "/dev/null"),
            "--truth /nowhere/truth.json: folder /nowhere does",
        ),
        (("--truth", "/", "--output", "/dev/null"), "--truth / can't be written"),
        (("--fault-rate", "7"), "fault_rate=7.0 must lie between"),
    ],
)
def test_the_command_refuses_wrong_use(
    cli: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    result = cli("--events", 5, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    program = "import typer; from headrace.pipelines.commands.simulate import simulate; typer.run(simulate)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--events", "3000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(100).startswith(b'{"')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_help_shows_an_example(cli: Callable[..., Any]) -> None:
    assert "headrace simulate --events 200000" in " ".join(cli("--help").stdout.split())
