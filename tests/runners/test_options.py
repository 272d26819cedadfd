from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DebugOptions, DirectOptions, SetupOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from headrace.runners.options import check_known, prepare, with_package
from headrace.runners.profiles import PROFILES
from headrace.schemas.errors import ConfigError
from tests.runners.job import FakeJob


def test_without_a_runner_it_is_the_one_in_this_process() -> None:
    profile, options = prepare([], FakeJob())
    assert profile.name == "direct"
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(DirectOptions).direct_running_mode == "in_memory"


def test_beam_knows_the_class_of_every_runner() -> None:
    for profile in PROFILES:
        assert type(create_runner(profile.beam_runner)).__name__ == profile.beam_runner


def test_options_of_beam_are_passed_on_in_both_spellings() -> None:
    _, options = prepare(
        ["--direct_runner_bundle_repeat=1", "--experiments", "one", "--experiments=two"], FakeJob()
    )
    assert options.view_as(DirectOptions).direct_runner_bundle_repeat == 1
    assert options.view_as(DebugOptions).experiments == ["one", "two"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--direct_num_worker=2"],
            r"unknown option --direct_num_worker; did you mean '--direct_num_workers'\?",
        ),
        (["--direct-runner-bundle-repeat=1"], "did you mean '--direct_runner_bundle_repeat'"),
        (["--inptu=x"], r"unknown option --inptu; did you mean '--input'\?"),
        (["--qqqqqq"], "unknown option --qqqqqq; no known name is near"),
        (["-x"], "unknown option -x; options of Beam begin with --"),
        (["stray"], "unexpected argument 'stray'$"),
        (["a", "b", "c"], "unexpected argument 'a' and 2 more"),
        (
            ["--direct_num_workers=two"],
            "Beam option: argument --direct_num_workers: invalid int value: 'two'",
        ),
        (["--direct_running_mode=fast"], "Beam option: .*invalid choice: 'fast'"),
        (["--direct_num_workers"], "Beam option: .*expected one argument"),
    ],
)
def test_what_beam_would_ignore_is_refused(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_known(args, ["--input", "--output"])


def test_a_pattern_that_the_shell_expanded_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.jsonl").touch()
    with pytest.raises(ConfigError, match="if the shell expanded a pattern, quote it"):
        check_known(["b.jsonl"])


def test_remote_workers_get_the_package(tmp_path: Path) -> None:
    args = ["--runner=portable", "--job_endpoint=h:1", "--environment_type=EXTERNAL"]
    ready = with_package(args, tmp_path)
    assert ready == [*args, f"--setup_file={tmp_path / 'setup.py'}"]
    _, options = prepare(ready, FakeJob(shared_paths=True))
    assert Path(options.view_as(SetupOptions).setup_file).is_file()


@pytest.mark.parametrize(
    "args",
    [
        ["--runner=direct"],
        ["--runner=portable", "--environment_type=LOOPBACK"],
        ["--runner=portable", "--environment_type=EXTERNAL", "--setup_file=/own/setup.py"],
        ["--runner=portable", "--environment_type=EXTERNAL", "--extra_package=/own/headrace.whl"],
        ["--runner=portable", "--environment_type=DOCKER", "--sdk_container_image=own"],
        ["--runner=portable", "--environment_type=DOCKER", "--environment_config=own"],
        [
            "--runner=portable",
            "--environment_type=DOCKER",
            "--environment_options=docker_container_image=own",
        ],
    ],
)
def test_workers_that_have_the_package_get_none(args: list[str], tmp_path: Path) -> None:
    assert with_package(args, tmp_path) == args
    assert not list(tmp_path.iterdir())
