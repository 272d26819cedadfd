import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner, Result

from headrace.connectors.atomic_file import OutputError
from headrace.pipelines.cli import app
from headrace.pipelines.commands import doctor as module
from headrace.pipelines.exits import EXIT_CODES, verdict
from headrace.schemas.errors import ConfigError, InputError, UntrustedRunError
from headrace.transforms.keys import KEY_FILE_VARIABLE, Key

COMMANDS = [
    ["run"], ["run", "batch"], ["validate"], ["simulate"], ["schemas"], ["explain"], ["doctor"], ["key"], ["key", "create"],
]  # fmt: skip


def run(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Result]:
    """Runs ``headrace doctor`` with a body that raises."""

    def run_failing(error: BaseException) -> Result:
        def doctor() -> NoReturn:
            raise error

        monkeypatch.setattr(module, "doctor", doctor)
        return CliRunner().invoke(app, ["doctor"])

    return run_failing


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_shows_an_example(command: list[str]) -> None:
    code, text, _ = run(*command, "--help")
    assert code == 0
    assert f"headrace {' '.join(command[:1])}" in text.partition("Usage:")[2].partition("\n")[2]


def test_the_help_lists_commands_in_the_order_of_use_and_all_exit_codes() -> None:
    code, text, _ = run("--help")
    assert code == 0
    places = [
        text.index(f"│ {name} ")
        for name in ("run", "validate", "simulate", "schemas", "explain", "doctor", "key")
    ]
    assert places == sorted(places)
    flat = " ".join(text.split())
    for number, meaning in EXIT_CODES.items():
        assert f"{number} {meaning}" in flat


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == (0, "headrace 0.1.0\n", "")


def test_without_a_command_the_help_is_shown() -> None:
    code, text, error = run()
    assert code == 2
    assert "Usage: headrace" in text + error


def test_an_unknown_command_names_the_nearest() -> None:
    code, _, error = run("simulat")
    assert code == 2
    assert "No such command 'simulat'. Did you mean 'simulate'?" in error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("wrong; fix it"), 2, "error: wrong; fix it\n"),
        (InputError("no such file"), 2, "error: no such file\n"),
        (UntrustedRunError("3 rows are missing"), 3, "error: 3 rows are missing\n"),
        (
            OutputError(errno.ENOSPC, "can't write: No space left on device", "/out/x"),
            3,
            "error: /out/x: can't write: No space left on device\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            3,
            "error: /tmp/x: No space left on device; the run did not finish. Run the same command again once that is mended\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues where it can\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException, code: int, message: str, failing: Callable[[BaseException], Result]
) -> None:
    done = failing(error)
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", message)


def test_a_fault_of_ours_shows_where_and_ends_with_3(failing: Callable[[BaseException], Result]) -> None:
    done = failing(KeyError("surprise"))
    assert done.exit_code == 3
    assert "Traceback" in done.stderr and "KeyError: 'surprise'" in done.stderr
    assert done.stderr.endswith("error: unexpected, please report it with the lines above\n")


def test_a_missing_package_leads_to_the_doctor(failing: Callable[[BaseException], Result]) -> None:
    done = failing(ModuleNotFoundError("No module named 'duckdb'", name="duckdb"))
    message = "error: No module named 'duckdb'; `headrace doctor` says how to mend the installation\n"
    assert (done.exit_code, done.stderr) == (2, message)
    assert (
        "Traceback" in failing(ModuleNotFoundError("No module named 'headrace.x'", name="headrace.x")).stderr
    )


def test_the_doctor_works_without_the_packages_that_it_looks_for() -> None:
    code = (
        "import sys\n"
        "for name in ('apache_beam', 'pyarrow', 'numpy', 'yaml', 'duckdb', 'cryptography'): sys.modules[name] = None\n"
        "from headrace.pipelines.cli import app; app(['doctor'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "missing  key file" in done.stdout and "missing  schemas" in done.stdout


def test_a_closed_pipe_is_no_fault(failing: Callable[[BaseException], Result]) -> None:
    done = failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr


def test_what_a_worker_raised_is_found_behind_what_beam_raised() -> None:
    def wrapped(inner: Exception) -> Exception:
        try:
            try:
                raise inner
            finally:
                raise RuntimeError(f"{inner} [while running 'A/B']")
        except RuntimeError as outer:
            return outer

    assert verdict(wrapped(ConfigError("key differs"))) == (2, "key differs")
    found = verdict(wrapped(OSError(errno.EACCES, "Permission denied", "/x")))
    assert found is not None and found[0] == 3 and found[1].startswith("/x: Permission denied; ")
    assert verdict(ConfigError("key differs [while running 'ReadStage']")) == (2, "key differs")
    assert verdict(wrapped(ValueError("x"))) is None
    assert verdict(OSError("no file named")) is None


def test_a_key_is_created_once_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    code, text, _ = run("key", "create", str(path))
    secret = path.read_text().strip()
    fingerprint = Key(path).fingerprint
    assert (code, text) == (0, f"key file {path}: created (fingerprint {fingerprint})\n")
    assert path.stat().st_mode & 0o777 == 0o600
    code, text, _ = run("key", "create", str(path))
    assert (code, text) == (0, f"key file {path}: exists already, kept (fingerprint {fingerprint})\n")
    assert path.read_text().strip() == secret and secret not in text


def test_the_default_key_is_created_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "mine"))
    assert run("key", "create")[0] == 0
    assert (tmp_path / "mine").exists()


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--events", "3"], ["schemas", "list"]])
def test_light_commands_do_not_wait_for_beam(arguments: list[str]) -> None:
    code = (
        "import sys; from headrace.pipelines.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as done: code = done.code\n"
        "print('beam' if 'apache_beam' in sys.modules else 'light', code, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "light 0"


@pytest.mark.integration
def test_the_script_is_installed_and_ends_with_the_code(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("headrace")
    done = subprocess.run(
        [script, "explain", "x", "--output", tmp_path / "no"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: output ") and len(done.stderr.splitlines()) == 1
