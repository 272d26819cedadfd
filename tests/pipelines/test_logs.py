import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.pipelines import logs
from headrace.pipelines.logs import WITHHELD, ProgressLog, configure_logs, name_job, without_values
from headrace.pipelines.progress import Progress
from headrace.schemas.errors import ConfigError, InputError

SECRET = "anna@example.org"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Puts the process's logging back."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    noisy = {name: logging.getLogger(name).level for name in logs.NOISY}
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)
    name_job(None)


def fail_with(error: BaseException, message: str = "it failed") -> None:
    try:
        raise error
    except type(error):
        logging.getLogger("headrace.x").exception(message)


def lines(act: Callable[[], object], level: str = "info") -> list[dict[str, Any]]:
    """What ``act`` logs as JSON."""
    stream = io.StringIO()
    configure_logs("json", level, job="s0001", stream=stream)
    act()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object() -> None:
    def act() -> None:
        record = logging.LogRecord("headrace.x", logging.WARNING, "f.py", 1, "%d rows\nof é", (3,), None)
        record.created = 1_767_618_000.25
        logging.getLogger("headrace.x").handle(record)

    assert lines(act) == [
        {
            "time": "2026-01-05T13:00:00.250000Z",
            "level": "warning",
            "logger": "headrace.x",
            "message": "3 rows\nof é",
            "job": "s0001",
        }
    ]


def test_an_error_has_its_type_its_place_and_its_causes() -> None:
    def act() -> None:
        try:
            try:
                raise FileNotFoundError(2, "No such file", "a.json")
            except OSError as error:
                raise InputError("a.json can't be read") from error
        except InputError:
            logging.getLogger("headrace.x").exception("it failed")

    (line,) = lines(act)
    found = line["exception"]
    assert (line["level"], found["type"]) == ("error", "headrace.schemas.errors.InputError")
    assert found["message"] == "a.json can't be read"
    assert "test_logs.py" in found["traceback"] and "in act" in found["traceback"]
    (cause,) = found["causes"]
    assert (cause["type"], cause["message"]) == ("FileNotFoundError", "[Errno 2] No such file: 'a.json'")


def test_the_message_of_a_foreign_error_is_withheld() -> None:
    (line,) = lines(lambda: fail_with(ValueError(f"could not convert {SECRET!r}")))
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["message"] == WITHHELD
    assert "raise error" in line["exception"]["traceback"]
    assert SECRET not in json.dumps(line)


def test_an_error_of_ours_that_quotes_a_foreign_one_keeps_its_own_words() -> None:
    quoted = f'the job ended: Traceback (most recent call last):\n  File "a.py", line 1\nValueError: {SECRET}'
    (line,) = lines(lambda: fail_with(InputError(quoted)))
    assert line["exception"]["message"].startswith("the job ended: Traceback")
    assert SECRET not in json.dumps(line)


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    configure_logs("text", "info", stream=stream)
    logging.getLogger("headrace.x").info("3 rows", extra={"fields": {"rows": 3, "lag": 0}})
    fail_with(ValueError(SECRET))
    fail_with(InputError("a.json can't be read"))
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("Z INFO headrace.x: 3 rows (rows 3, lag 0)")
    assert len(first.split("Z ")[0]) == len("2026-01-05T13:00:00.250")
    assert rest[0].endswith("Z ERROR headrace.x: it failed")
    assert rest[1] == "Traceback (most recent call last):" and f"ValueError: {WITHHELD}" in rest
    assert rest[-1] == "headrace.schemas.errors.InputError: a.json can't be read"
    assert SECRET not in stream.getvalue()


def test_fields_are_values_of_their_own() -> None:
    def act() -> None:
        logging.getLogger("headrace.x").info("3 rows", extra={"fields": {"rows": 3, "rate": None}})

    assert lines(act)[0]["fields"] == {"rows": 3, "rate": None}


def test_others_are_heard_from_warning_on() -> None:
    def act() -> None:
        for name in ("headrace.x", "apache_beam.io.kafka", "urllib3.connectionpool", "other"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).log(level, name)

    def heard(level: str) -> list[tuple[str, str]]:
        return [(line["logger"].partition(".")[0], line["level"]) for line in lines(act, level)]

    assert heard("info") == [
        *[("headrace", level) for level in ("info", "warning", "error")],
        *[("apache_beam", level) for level in ("warning", "error")],
        *[("urllib3", level) for level in ("warning", "error")],
        *[("other", level) for level in ("info", "warning", "error")],
    ]
    assert heard("ERROR") == [(name, "error") for name in ("headrace", "apache_beam", "urllib3", "other")]
    assert ("headrace", "debug") in heard("debug") and ("apache_beam", "info") not in heard("debug")


def test_prisms_comings_and_goings_are_heard_only_where_they_fail() -> None:
    def act() -> None:
        logging.getLogger("PrismRunner").setLevel(logging.INFO)  # as Beam does when it starts Prism
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("PrismRunner").log(level, "x")
            logging.getLogger("apache_beam.utils.subprocess_server").log(level, "x")

    assert [line["level"] for line in lines(act, "warning")] == ["error", "error"]
    assert [line["level"] for line in lines(act, "debug")].count("warning") == 2


def test_warnings_are_lines_too() -> None:
    (line,) = lines(lambda: warnings.warn("this is old", stacklevel=1))
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: this is old" in line["message"]


def test_configuring_again_replaces_what_was() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs("json", "debug", stream=first)
    configure_logs("json", "warning", stream=second)
    logging.getLogger("headrace.x").info("no")
    logging.getLogger("headrace.x").warning("yes")
    assert first.getvalue() == ""
    assert [json.loads(line)["message"] for line in second.getvalue().splitlines()] == ["yes"]


def test_the_job_is_in_the_lines_of_every_thread() -> None:
    def act() -> None:
        name_job("s0002")
        thread = threading.Thread(target=lambda: logging.getLogger("headrace.x").warning("here"))
        thread.start()
        thread.join()
        name_job(None)
        logging.getLogger("headrace.x").warning("there")

    found = lines(act)
    assert [line.get("job") for line in found] == ["s0002", None] and "job" not in found[1]


def test_lines_go_to_the_standard_error_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live line redirects it while it is shown."""
    configure_logs("text", "info")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger("headrace.x").warning("here")
    assert stream.getvalue().endswith("WARNING headrace.x: here\n")


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="--log-format is 'xml'; it is text or json"):
        configure_logs("xml", "info")
    with pytest.raises(ConfigError, match="--log-level is 'loud'; it is one of debug, info, warning, error"):
        configure_logs("text", "loud")


def test_progress_is_logged_now_and_then() -> None:
    now = [0.0]

    def act() -> None:
        log = ProgressLog(30, clock=lambda: now[0])
        for second in range(0, 100, 10):
            now[0] = float(second)
            log(Progress(second * 10, second, 0, 0, float(second), "reading"))

    found = lines(act)
    assert [line["fields"]["rows"] for line in found] == [300, 600, 900]
    assert found[0]["logger"] == "headrace.progress"
    assert found[0]["message"] == "reading, 300 rows, 10 rows/s, 30 rejected, 0:30 elapsed"
    assert found[0]["fields"] == {
        "rows": 300,
        "rejected": 30,
        "bytes_read": 0,
        "bytes_total": 0,
        "elapsed_seconds": 30.0,
        "phase": "reading",
    }


FRAMES = '  File "a.py", line 1, in f\n    int(x)\n    ^^^^^^'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing failed: a\nb", "nothing failed: a\nb"),
        (
            f"job failed: Traceback (most recent call last):\n{FRAMES}\nValueError: {SECRET}\nand {SECRET}\n\n{SECRET}",
            f"job failed: Traceback (most recent call last):\n{FRAMES}\nValueError: {WITHHELD}",
        ),
        (
            f"Traceback (most recent call last):\n{FRAMES}\npyarrow.lib.ArrowInvalid: {SECRET}\n\n"
            "During handling of the above exception, another exception occurred:\n\n"
            f"Traceback (most recent call last):\n{FRAMES}\nKeyError\n\tat a.b.Flink.run(F.java:3)\nCaused by: X",
            f"Traceback (most recent call last):\n{FRAMES}\npyarrow.lib.ArrowInvalid: {WITHHELD}\n"
            "During handling of the above exception, another exception occurred:\n\n"
            f"Traceback (most recent call last):\n{FRAMES}\nKeyError: {WITHHELD}\n\tat a.b.Flink.run(F.java:3)\nCaused by: X",
        ),
        (
            f"Traceback (most recent call last):\n{FRAMES}\nheadrace.schemas.errors.InputError: topic gone\nsee log",
            f"Traceback (most recent call last):\n{FRAMES}\nheadrace.schemas.errors.InputError: topic gone\nsee log",
        ),
        (
            f"Traceback (most recent call last):\n{FRAMES}\nPermissionError: [Errno 13] no: 'x'",
            f"Traceback (most recent call last):\n{FRAMES}\nPermissionError: [Errno 13] no: 'x'",
        ),
        (
            f"Traceback (most recent call last):\n{FRAMES}\n{SECRET} is no type",
            f"Traceback (most recent call last):\n{FRAMES}\n{WITHHELD}",
        ),
        (
            f"RuntimeError('Traceback (most recent call last):\\n  File a\\nValueError: {SECRET}')\n{SECRET}",
            f"RuntimeError('Traceback (most recent call last): {WITHHELD}",
        ),
        (
            f"  + Exception Group Traceback (most recent call last):\n  |   File 'a.py'\n  | ExceptionGroup: {SECRET}\n"
            f"  +-+------\n    | ValueError: {SECRET}",
            f"  + Exception Group Traceback (most recent call last):\n{WITHHELD}",
        ),
    ],
)
def test_what_a_quoted_traceback_says_is_withheld(text: str, expected: str) -> None:
    assert without_values(text) == expected


def test_real_tracebacks_keep_their_frames_and_lose_their_words() -> None:
    import traceback

    def inner() -> None:
        raise ValueError(f"{SECRET}\n\nsecond {SECRET}")

    try:
        try:
            inner()
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError:
        text = without_values("Error in bundle: " + traceback.format_exc())
    assert SECRET not in text
    assert f"ValueError: {WITHHELD}" in text and f"KeyError: {WITHHELD}" in text
    assert text.count("Traceback (most recent call last):") == 2 and "in inner" in text


def test_nothing_is_configured_by_an_import() -> None:
    code = (
        "import logging, headrace.pipelines.logs as l\n"
        "assert not logging.getLogger().handlers and logging.getLogger('apache_beam').level == 0\n"
        "import sys; assert 'apache_beam' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)
