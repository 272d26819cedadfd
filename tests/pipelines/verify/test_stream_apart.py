import sys
import time
from pathlib import Path

import pytest

from headrace.connectors.stream_ledger import StreamTotals
from headrace.pipelines.config_file import load_settings
from headrace.pipelines.stream_config import StreamConfig
from headrace.pipelines.verify import stream_apart
from headrace.pipelines.verify.stream_apart import run_stream_apart
from headrace.schemas.errors import ConfigError, UntrustedRunError


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Lets a program stand for ``headrace run stream``."""
    monkeypatch.setattr(stream_apart, "_COMMAND", (sys.executable, "-S", "-c", f"import sys, time\n{code}"))
    monkeypatch.setattr(stream_apart, "LOOK_SECONDS", 0.05)


def run(tmp_path: Path, looks: list[StreamTotals]) -> None:
    config = StreamConfig(source="dir:in", output=str(tmp_path / "out"), readers=2)
    run_stream_apart(config, ["--runner=prism"], looks.append, log=tmp_path / "stream.log")


def test_the_stream_gets_its_configuration_and_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, "time.sleep(0.3); print(*sys.argv[1:], file=sys.stderr)")
    looks: list[StreamTotals] = []
    run(tmp_path, looks)
    assert looks and set(looks[0].rejected) == set()
    log = tmp_path / "stream.log"
    config, path, quiet, runner = log.read_text().split()
    assert (config, quiet, runner) == ("--config", "--quiet", "--runner=prism")
    found = load_settings(StreamConfig, path)
    assert found == StreamConfig(source="dir:in", output=str(tmp_path / "out"), readers=2)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "print('noise\\nerror: bad option', file=sys.stderr); sys.exit(2)",
            ConfigError,
            "exit code 2: bad option",
        ),
        ("print('a\\nb', file=sys.stderr); sys.exit(3)", UntrustedRunError, "exit code 3: a\nb"),
        ("sys.exit(1)", UntrustedRunError, "exit code 1: it left no message"),
    ],
)
def test_a_stream_that_fails_says_why(
    code: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, code)
    with pytest.raises(kind) as caught:
        run(tmp_path, [])
    assert message in str(caught.value)


def test_a_stream_that_is_no_longer_wanted_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes two signals: the first one only asks it to drain."""
    code = (
        "import signal\ncount = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3) if count else count.append(1))\n"
        "print('ready', file=sys.stderr, flush=True)\nwhile True: time.sleep(0.05)"
    )
    program(monkeypatch, code)
    log = tmp_path / "stream.log"

    def stop(totals: StreamTotals) -> None:
        if "ready" in log.read_text():
            raise UntrustedRunError("it stands still")

    began = time.monotonic()
    config = StreamConfig(source="dir:in", output=str(tmp_path / "out"))
    with pytest.raises(UntrustedRunError, match="it stands still"):
        run_stream_apart(config, [], stop, log=log)
    assert time.monotonic() - began < 20
